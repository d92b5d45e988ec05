//! Work on a sequence of items, several at once, with the outcomes in the sequence's order. What
//! the items are is the business of `source` and `receiver`; no I/O of its own, no async.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

/// More threads than this would only hold more memory: each has a block or two.
const MAX_THREADS: usize = 4;

/// Does `work` on each item, on a few threads that each keep a `tool`, and hands the outcomes to
/// `sink` in the order of the items, until it breaks off or there is no further item.
///
/// Items are asked for on a thread of their own, and only so many ahead that memory stays bounded:
/// twice the threads. When `sink` breaks off while an item is waited for, this returns when that
/// item, or the last, has come: whoever breaks off sees to it.
pub(super) fn in_order<Item: Send, Tool, Outcome: Send>(
    items: impl Iterator<Item = Item> + Send,
    tool: impl Fn() -> Tool + Sync,
    work: impl Fn(&mut Tool, Item) -> Outcome + Sync,
    mut sink: impl FnMut(Outcome) -> ControlFlow<()>,
) {
    let threads = available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = threads.min(MAX_THREADS);
    let (jobs, waiting) = sync_channel::<(Item, SyncSender<Outcome>)>(threads);
    let (promises, order) = sync_channel::<Receiver<Outcome>>(threads);
    let waiting = Mutex::new(waiting);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut tool = tool();
                while let Some((item, promise)) = next(&waiting) {
                    // Nobody waits for it if the sink has broken off.
                    let _ = promise.send(work(&mut tool, item));
                }
            });
        }
        scope.spawn(move || {
            for item in items {
                let (promise, outcome) = sync_channel(1);
                if promises.send(outcome).is_err() || jobs.send((item, promise)).is_err() {
                    return;
                }
            }
        });
        // A promise is broken only by a panic, which the scope passes on.
        for outcome in order.into_iter().map_while(|outcome| outcome.recv().ok()) {
            if sink(outcome).is_break() {
                return;
            }
        }
    });
}

fn next<T>(waiting: &Mutex<Receiver<T>>) -> Option<T> {
    let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.recv().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn outcomes_come_in_the_order_of_the_items_whatever_each_takes() {
        let slow_first = |_: &mut (), item: u64| {
            for _ in 0..(200 - item) * 100 {
                std::hint::spin_loop();
            }
            item * 2
        };
        let mut seen = Vec::new();
        in_order(
            0..200,
            || (),
            slow_first,
            |outcome| {
                seen.push(outcome);
                ControlFlow::Continue(())
            },
        );
        assert_eq!(seen, (0..200).map(|item| item * 2).collect::<Vec<_>>());
    }

    #[test]
    fn no_more_than_a_few_items_are_asked_for_ahead_and_none_after_the_sink_breaks_off() {
        let (asked, mut taken) = (AtomicUsize::new(0), 0);
        let items = std::iter::from_fn(|| Some(asked.fetch_add(1, Ordering::Relaxed)));
        in_order(
            items,
            || (),
            |(), item| item,
            |outcome| {
                assert_eq!(outcome, taken);
                taken += 1;
                assert!(asked.load(Ordering::Relaxed) <= taken + 3 * MAX_THREADS + 2);
                match taken {
                    100 => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            },
        );
        assert_eq!(taken, 100);
    }
}
