//! Generates the gRPC code from the `.proto` files; protox parses them, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["agent.proto", "enrolment.proto"], ["proto"])?;
    // The crate has no sockets: whoever dials or listens brings the transport.
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
