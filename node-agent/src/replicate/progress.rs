//! What a person sees while a snapshot is replicated, and how much memory that took.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::transfer::Ticket;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

const BAR: &str =
    "{percent:>3}% {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";

/// Looks at a transfer from a thread of its own.
pub(super) struct Meter {
    seen: Arc<Seen>,
    shown: bool,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    ticket: OnceLock<Arc<Ticket>>,
    peak: AtomicU64,
    ended: AtomicBool,
}

impl Meter {
    /// Starts looking; with a bar if somebody is there to see it.
    pub(super) fn start(show: bool) -> Self {
        let seen = Arc::new(Seen::default());
        let shown = show && io::stderr().is_terminal();
        let bar = match shown {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let looking = Arc::clone(&seen);
        let thread = std::thread::Builder::new()
            .name("progress".into())
            .spawn(move || looking.look(&bar))
            .ok();
        Self {
            seen,
            shown,
            thread,
        }
    }

    /// Whether somebody sees how far it is.
    pub(super) fn is_shown(&self) -> bool {
        self.shown
    }

    /// What to look at.
    pub(super) fn watch(&self, ticket: Arc<Ticket>) {
        let _ = self.seen.ticket.set(ticket);
    }

    /// Ends it; the most anonymous memory that the process had, in bytes.
    pub(super) fn end(mut self) -> u64 {
        self.seen.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.seen.peak.load(Ordering::Relaxed)
    }
}

impl Seen {
    fn look(&self, bar: &ProgressBar) {
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style);
        }
        loop {
            if let Some(bytes) = rss_anon() {
                self.peak.fetch_max(bytes, Ordering::Relaxed);
            }
            if let Some(ticket) = self.ticket.get() {
                let done = ticket.done.load(Ordering::Relaxed);
                bar.set_length(ticket.total().max(done));
                bar.set_position(done);
            }
            if self.ended.load(Ordering::Relaxed) {
                return bar.finish_and_clear();
            }
            std::thread::park_timeout(LOOK);
        }
    }
}

/// The anonymous memory that this process has, in bytes.
fn rss_anon() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes << 10)
}
