//! What an agent does for one namespace touches that namespace's image directories only.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use icbd_wire::control::*;
use support::operator::*;
use support::{Node, Pool};
use tonic::Status;

/// Names that would lead elsewhere, or mean something in a pool, if they became paths as they are.
const HOSTILE: [&str; 12] = [
    "",
    ".",
    "..",
    "../outside",
    "../../outside",
    "/outside",
    "a/b",
    "a/../../outside",
    ".meta",
    ".icbd-pool",
    "live\0",
    "%2e%2e",
];

fn of(namespace: &str, image: &str) -> ImageRef {
    ImageRef {
        namespace: namespace.into(),
        image: image.into(),
    }
}

/// Everything below a directory, by path; what a refused call must leave as it was. Records come
/// and go under temporary names while the agent counts bytes, and are left out.
fn everything(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() && !path.ends_with(".meta") {
            found.extend(everything(&path));
        }
        found.push(path.display().to_string());
    }
    found.sort();
    found
}

/// One request of each kind that works on an image; `image` and `number` stand in each.
async fn every_call(
    operator: &Operator,
    plan: &Plan,
    image: &ImageRef,
    number: u64,
) -> Vec<(&'static str, Result<(), Status>)> {
    let mut client = operator.client.clone();
    let image = Some(image.clone());
    let take = TakeSnapshotRequest {
        image: image.clone(),
        bind_number: number,
        ..operator.take_request("hostile")
    };
    let delete = DeleteSnapshotRequest {
        fence: Some(operator.fence.clone()),
        image: image.clone(),
        owner: Some(owner()),
        number,
        identity: plan.snapshot.identity.clone(),
        name: "../hostile".into(),
    };
    let delete_image = DeleteImageRequest {
        fence: Some(operator.fence.clone()),
        image: image.clone(),
        owner: Some(owner()),
    };
    let expect = ExpectRequest {
        image: image.clone(),
        number,
        ..operator.expect_request(plan)
    };
    let send = SendRequest {
        image: image.clone(),
        number,
        ..operator.send_request(plan, "127.0.0.1:9".parse().unwrap())
    };
    let inventory = InventoryRequest { image };
    vec![
        ("take", client.take_snapshot(take).await.map(drop)),
        ("delete", client.delete_snapshot(delete).await.map(drop)),
        (
            "delete image",
            client.delete_image(delete_image).await.map(drop),
        ),
        ("expect", client.expect(expect).await.map(drop)),
        ("send", client.send(send).await.map(drop)),
        ("inventory", client.inventory(inventory).await.map(drop)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn no_name_or_number_leads_out_of_the_image_directory() {
    let pool = Pool::new();
    let (node, operator) = Node::ready("primary", &pool).await;
    node.make_live();
    node.write_live("disk.img", b"first");
    let plan = Plan::full(&operator.take("one").await);
    let root = node.pool().parent().unwrap().to_path_buf();
    fs::create_dir(root.join("outside")).unwrap();
    let before = everything(&root);
    for name in HOSTILE {
        for image in [of(name, "win11"), of("desktops", name), of(name, name)] {
            for (call, answer) in every_call(&operator, &plan, &image, 1).await {
                let Err(status) = answer else {
                    panic!("{call} took {image:?}")
                };
                assert_eq!(
                    reason_of(&status),
                    Some(Reason::InvalidArgument),
                    "{call} of {image:?}: {status}"
                );
            }
        }
    }
    assert_eq!(everything(&root), before);
    // A number is one from 1 on, and no path can be written as one.
    for (call, answer) in every_call(&operator, &plan, &image(), 0).await {
        if ["delete", "expect", "send"].contains(&call) {
            refused(answer, Reason::InvalidArgument);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_link_in_the_pool_leads_nowhere() {
    let pool = Pool::new();
    let (node, operator) = Node::ready("primary", &pool).await;
    node.make_live();
    node.write_live("disk.img", b"first");
    let plan = Plan::full(&operator.take("one").await);
    // Another tenant's directory, reached through a link from inside one's own, or from the pool.
    symlink(node.at("desktops"), node.at("linked")).unwrap();
    fs::create_dir(node.at("tenant")).unwrap();
    symlink(node.image(), node.at("tenant/win11")).unwrap();
    let before = everything(&node.pool());
    for image in [of("linked", "win11"), of("tenant", "win11")] {
        for (call, answer) in every_call(&operator, &plan, &image, 1).await {
            // An inventory of what is not there is empty.
            assert!(
                answer.is_err() || call == "inventory",
                "{call} followed a link to {image:?}"
            );
        }
    }
    let seen = operator.seen().images;
    assert_eq!(seen.keys().collect::<Vec<_>>(), [support::IMAGE]);
    assert_eq!(everything(&node.pool()), before);
    assert!(node.has(1), "deleted through a link");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn images_of_one_name_in_two_namespaces_stay_apart() {
    let pool = Pool::new();
    let (node, operator) = Node::ready("primary", &pool).await;
    node.make_live();
    node.write_live("disk.img", b"ours");
    let ours = operator.take("golden").await;

    let dir = node.at("lab/win11");
    fs::create_dir_all(&dir).unwrap();
    icbd_btrfs::create(fs::File::open(&dir).unwrap(), "live").unwrap();
    fs::write(dir.join("live/disk.img"), b"theirs").unwrap();
    let theirs_alone = Owner {
        namespace_uid: "uid-of-lab".into(),
        adopt_from: String::new(),
    };
    let take = TakeSnapshotRequest {
        image: Some(of("lab", "win11")),
        owner: Some(theirs_alone.clone()),
        ..operator.take_request("golden")
    };
    let theirs = operator.call_take(take).await.unwrap();
    // The same name and number, and other content.
    assert_eq!((ours.number, theirs.number), (1, 1));
    assert_ne!(ours.identity, theirs.identity);
    assert_eq!(fs::read(dir.join("1/disk.img")).unwrap(), b"theirs");

    // What one deletes, the other keeps; and none is allowed to delete as the other.
    let delete = |image: ImageRef, owner: Owner| DeleteImageRequest {
        fence: Some(operator.fence.clone()),
        image: Some(image),
        owner: Some(owner),
    };
    let mut client = operator.client.clone();
    let trespass = client.delete_image(delete(image(), theirs_alone.clone()));
    refused(trespass.await, Reason::NamespaceChanged);
    let own = client.delete_image(delete(of("lab", "win11"), theirs_alone));
    assert_eq!(own.await.unwrap().into_inner().deleted, [1]);
    assert!(node.has(1) && !dir.join("1").exists());
}
