//! Real streams, full and incremental, of both versions, with compressed extents too, that were
//! damaged on the way or changed on purpose: refused, or carried out within the subvolume.
//!
//! `MUTATION_SEED` repeats one run; `MUTATIONS` says how many there shall be of each stream.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]
// Seeds are for whoever reads the output.
#![allow(clippy::print_stdout)]

mod hostile;
mod receive_pair;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use hostile::{Mutation, Route, Target};
use icbd_btrfs::{Access, SendRequest, Subvolume, snapshot};
use receive_pair::{btrfs_send, noise, receive, split};
use support::Pool;

/// Of each stream. Each is applied by every route.
const MUTATIONS: u64 = 120;

#[test]
#[ignore = "needs root and btrfs"]
fn damaged_streams_are_refused_or_do_no_harm() {
    let target = Target::new();
    let seed = number("MUTATION_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("MUTATION_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut taken: BTreeMap<_, (usize, usize)> = BTreeMap::new();
    for (name, stream) in streams(&target) {
        let commands = split(&stream);
        for route in Route::ALL {
            let control = target.receive_pieces(route, &pieces(&commands));
            control.unwrap_or_else(|error| panic!("{name} by {route:?}: {error}"));
        }
        for _ in 0..number("MUTATIONS").unwrap_or(MUTATIONS) {
            let mutation = random.choice(Mutation::ALL).unwrap();
            let mut changed = commands.clone();
            mutation.apply(&mut random, &mut changed);
            for route in Route::ALL {
                let outcome = target.receive_pieces(route, &pieces(&changed));
                let (all, accepted) = taken.entry((mutation, route)).or_default();
                *all += 1;
                *accepted += usize::from(outcome.is_ok());
                // Bytes may come that are the same again.
                let refused = changed == commands || outcome.is_err();
                let must = mutation == Mutation::Cut
                    || route == Route::Whole && mutation.is_seen_by_checksums();
                assert!(refused || !must, "{name}, {mutation:?} by {route:?}");
            }
        }
    }
    target.assert_same_content();
    for ((mutation, route), (all, accepted)) in taken {
        println!("{mutation:?} by {route:?}: {accepted} of {all} carried out");
    }
}

fn pieces(commands: &[Vec<u8>]) -> Vec<&[u8]> {
    commands.iter().map(Vec::as_slice).collect()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Streams that the target takes.
fn streams(target: &Target) -> Vec<(String, Vec<u8>)> {
    let source = Pool::new();
    let mut whole = Vec::new();
    let request = SendRequest {
        source: &target.base,
        parent: None,
        clone_sources: &[],
    };
    request.start().unwrap().read_to_end(&mut whole).unwrap();
    let base = receive(&source, "base", &whole[..]).unwrap();
    let live = snapshot(&base, source.dir(), "live", Access::Writable).unwrap();
    change(&source.path().join("live"), &live);
    snapshot(&live, source.dir(), "next", Access::ReadOnly).unwrap();

    let mut streams = vec![("base".into(), whole)];
    for (name, version) in [
        ("version 1", &["--proto", "1"][..]),
        ("version 2", &["--proto", "2"]),
        ("compressed", &["--proto", "2", "--compressed-data"]),
    ] {
        let full = [version, &["next"]].concat();
        let increment = [version, &["-p", "base", "next"]].concat();
        streams.push((format!("full, {name}"), btrfs_send(&source, &full)));
        streams.push((
            format!("increment, {name}"),
            btrfs_send(&source, &increment),
        ));
    }
    streams
}

/// Something of every command that the kernel sends.
fn change(root: &Path, live: &Subvolume) {
    let at = |name: &str| root.join(name);
    for (directory, algorithm) in [("zlib", "zlib"), ("zstd", "zstd")] {
        fs::create_dir(at(directory)).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(
            at(directory),
            "btrfs.compression",
            algorithm.as_bytes(),
            flags,
        )
        .unwrap();
        fs::write(at(directory).join("text"), b"replicated ".repeat(20_000)).unwrap();
    }
    fs::write(at("dir/large"), noise(150_000, 1)).unwrap();
    fs::write(at("file"), noise(20_000, 2)).unwrap();
    rustix::fs::syncfs(live).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 1 << 19).unwrap();
    support::run(
        "cp",
        [
            "--reflink=always".as_ref(),
            at("dir/large").as_os_str(),
            at("clone").as_os_str(),
        ],
    );
    fs::hard_link(at("dir/marked"), at("link")).unwrap();
    fs::rename(at("dir/empty"), at("moved")).unwrap();
    fs::remove_file(at("sock")).unwrap();
    fs::remove_dir(at("empty")).unwrap();
    fs::rename(at("in"), at("dir/in")).unwrap();
    let owned = at("dir/marked");
    std::os::unix::fs::chown(&owned, Some(7), Some(7)).unwrap();
    rustix::fs::removexattr(&owned, "user.mark").unwrap();
}
