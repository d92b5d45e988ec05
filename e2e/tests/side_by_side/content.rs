//! Whatever is in an image arrives as it is: full-tree digests of source and replicas are equal.

use icbd_crds::{Compression, TransferMode};
use icbd_e2e::{Outcome, Scenario, replica, selecting};
use serde_json::json;

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn every_codec_ends_in_the_same_content() -> Outcome {
    Scenario::run("codecs", async |s| {
        s.target(json!({"nodes": selecting(&["node-2"])})).await?;
        let codecs = [
            Compression::Auto,
            Compression::None,
            Compression::Snappy,
            Compression::Lz4,
            Compression::Zlib,
            Compression::Zstd,
        ];
        for codec in codecs {
            let name = format!("{codec:?}").to_lowercase();
            // Half of it can be compressed, half of it cannot.
            let script =
                "head -c 3M /dev/urandom > random; head -c 3M /dev/zero | tr '\\0' x > text";
            s.write_live("node-1", &name, script).await?;
            s.image(&name, "node-1", json!({"compression": codec}))
                .await?;
            s.snapshot(&name, json!({"image": name})).await?;
        }
        for codec in codecs {
            let name = format!("{codec:?}").to_lowercase();
            let snapshot = s.replicated(&name).await?;
            s.same_content(&name, 1, &["node-1", "node-2"]).await?;
            let sent = icbd_e2e::bytes_sent(&snapshot);
            match codec {
                Compression::None => assert!(sent > 6 << 20, "None sent {sent} bytes"),
                _ => assert!(sent < 5 << 20, "{name} sent {sent} bytes"),
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn an_empty_image_is_replicated() -> Outcome {
    Scenario::run("empty", async |s| {
        s.write_live("node-1", "disk", "").await?;
        s.target(json!({"nodes": selecting(&["node-2", "node-3"])}))
            .await?;
        s.image("disk", "node-1", json!({})).await?;
        s.snapshot("nothing", json!({"image": "disk"})).await?;
        s.replicated("nothing").await?;
        s.same_content("disk", 1, &NODES).await?;
        s.snapshot("still-nothing", json!({"image": "disk"}))
            .await?;
        s.replicated("still-nothing").await?;
        s.same_content("disk", 2, &NODES).await.map(drop)
    })
    .await
}

/// One of everything that a file system can hold.
const EVERYTHING: &str = r#"
mkdir -p many deep/er/and/deeper empty
for i in $(seq 3000); do echo "file $i" > many/$i; done
printf 'bytes' > $'name-\xff\xfe-not-utf8'
printf 'x' > 'with blank and "quotes" and \backslash'
echo linked > original; ln original hard-link; ln original deep/er/hard-link
ln -s original symlink; ln -s /nowhere/at/all dangling
head -c 2M /dev/urandom > cloned; cp --reflink=always cloned reflink
truncate -s 100M sparse; printf 'far' | dd of=sparse bs=1 seek=70000000 conv=notrunc status=none
touch nocow; chattr +C nocow; head -c 1M /dev/urandom >> nocow
fallocate -l 4M preallocated; printf 'some' | dd of=preallocated conv=notrunc status=none
mknod null-device c 1 3; mknod block-device b 7 99; mkfifo pipe
perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un("socket")) or die $!'
echo x > owned; chown 1234:5678 owned; chmod 4751 owned; chmod 1777 empty
setfattr -n user.colour -v blue owned; setfattr -n trusted.secret -v $'\x01\x02' deep
setfattr -h -n trusted.on-link -v yes symlink
touch -d '1969-12-31T23:59:58.123456789Z' before-the-epoch
touch -d '2106-02-07T06:28:17.5Z' after-32-bits
"#;

/// What happens to all of it between two snapshots.
const CHANGES: &str = r"
mv many moved; mkdir many; echo new > many/1; rm moved/2; mv moved/3 moved/2
rm original; echo other > original; ln original another-link
mv deep/er deep/est; rmdir empty; echo file > empty
printf 'middle' | dd of=cloned bs=1 seek=1000000 conv=notrunc status=none
truncate -s 50M sparse; truncate -s 200M sparse
cp --reflink=always reflink again; printf 'n' | dd of=nocow bs=1 seek=5000 conv=notrunc status=none
rm null-device; mknod null-device c 1 5
setfattr -x user.colour owned; setfattr -n user.shape -v round owned; chmod 600 owned
fallocate --punch-hole --offset 4096 --length 8192 reflink
";

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn every_kind_of_file_arrives_as_it_is() -> Outcome {
    Scenario::run("files", async |s| {
        s.write_live("node-1", "disk", EVERYTHING).await?;
        s.target(json!({"nodes": selecting(&["node-2", "node-3"])}))
            .await?;
        s.image("disk", "node-1", json!({})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.replicated("first").await?;
        let before = s.same_content("disk", 1, &NODES).await?;

        s.write_live("node-1", "disk", CHANGES).await?;
        s.snapshot("second", json!({"image": "disk"})).await?;
        let second = s.replicated("second").await?;
        let after = s.same_content("disk", 2, &NODES).await?;
        assert_ne!(before, after, "the digest does not see the changes");
        for node in ["node-2", "node-3"] {
            assert_eq!(
                replica(&second, node).and_then(|row| row.mode),
                Some(TransferMode::Incremental)
            );
        }
        // The replicas are as sparse as the source.
        let holes = format!("[ $(du -k {}/2/sparse | cut -f1) -lt 2000 ]", s.dir("disk"));
        s.node("node-2").sh(&holes).await.map(drop)
    })
    .await
}
