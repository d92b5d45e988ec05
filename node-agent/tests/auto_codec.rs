//! The codec that an agent chooses itself, on a slow line and on none that is slow.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use icbd_wire::control::*;
use support::operator::*;
use support::proxy::{Proxy, Weather};
use support::{Node, Pool, noise};

const MIB: usize = 1 << 20;

/// Content of which one of so many bytes is of no use, in each 4 KiB.
fn compressible(length: usize, one_of: usize) -> Vec<u8> {
    let mut content = noise(1, length);
    for block in content.chunks_mut(4096) {
        let count = block.len() / one_of;
        block[..count].fill(0);
    }
    content
}

/// Sends an image of this content over a line that may be slow; what the source says in the end.
async fn sent(content: &[u8], codec: Codec, weather: Weather) -> Transfer {
    let pools = (Pool::new(), Pool::new());
    let (source, from) = Node::ready("source", &pools.0).await;
    let (receiver, to) = Node::ready("receiver", &pools.1).await;
    source.make_live();
    source.write_live("disk.img", content);
    let snapshot = from.take("one").await;
    let plan = Plan {
        codec,
        ..Plan::full(&snapshot)
    };
    let line = Proxy::new(receiver.data()).await;
    line.set(weather);
    to.expect(to.expect_request(&plan)).await.unwrap();
    from.send(from.send_request(&plan, line.address))
        .await
        .unwrap();
    let story = from.story(&plan.transfer, Role::Source).await;
    let sent = story.last().unwrap().clone();
    succeeded(&sent);
    assert_eq!(source.digest(1), receiver.digest(1));
    println!(
        "{codec:?}, {weather:?}: {} of {}",
        sent.bytes_sent, sent.bytes_done
    );
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn on_a_slow_line_it_compresses() {
    let content = compressible(24 * MIB, 2);
    let auto = sent(&content, Codec::Auto, Weather::Slow).await;
    let none = sent(&content, Codec::None, Weather::Fair).await;
    assert!(none.bytes_sent >= none.bytes_done);
    assert!(matches!(auto.codec(), Codec::Lz4 | Codec::Zstd), "{auto:?}");
    // All of it would be half.
    assert!(auto.bytes_sent * 100 < none.bytes_sent * 65, "{auto:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_hardly_gets_smaller_goes_as_it_is() {
    // A codec would leave 95 % of it.
    let content = compressible(96 * MIB, 20);
    let lz4 = sent(&content, Codec::Lz4, Weather::Fair).await;
    let auto = sent(&content, Codec::Auto, Weather::Fair).await;
    assert!(lz4.bytes_sent * 100 < lz4.bytes_done * 97, "{lz4:?}");
    let saved = |it: &Transfer| it.bytes_done.saturating_sub(it.bytes_sent);
    assert!(saved(&auto) * 3 < saved(&lz4), "{auto:?}");
}
