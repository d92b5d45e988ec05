//! The command line, as scripts use it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::process::{Command, Output};

use support::{Node, Pool};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_icbd-agent"))
        .args(arguments)
        .env_remove("NODE_NAME")
        .output()
        .unwrap()
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_is_missing() {
    let output = agent(&["serve"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--node-name"));
}

#[test]
fn a_directory_that_is_no_subvolume_has_no_digest() {
    let output = agent(&["digest", "/proc"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/proc"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn digest_prints_64_hexadecimal_digits_and_a_newline() {
    let pool = Pool::new();
    let node = Node::bare("node");
    node.mount(&pool);
    node.make_live();
    node.write_live("file", b"content");
    let live = node.image().join("live");
    let output = agent(&["digest", live.to_str().unwrap()]);
    assert!(output.status.success());
    assert_eq!(
        output.stdout,
        format!("{}\n", support::digest(&live)).into_bytes()
    );
    assert_eq!(output.stdout.len(), 65);
    assert!(output.stderr.is_empty());
}
