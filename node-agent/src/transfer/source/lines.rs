//! What the lines to other nodes were last seen to be, from one transfer to the next. In memory alone; how a
//! line is looked at is in `auto`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::auto::Line;

/// More nodes than one source sends to. Beyond, all is forgotten, and learnt anew.
const MOST: usize = 1024;

/// How many passes in a row begin with a line that was fast though none of them tells what it is: short ones
/// do not, and on a line that has turned slow they would go uncompressed for ever.
const BELIEVED: u32 = 32;

/// What the lines to all nodes were last seen to be.
#[derive(Default)]
pub(in crate::transfer) struct Lines(Mutex<HashMap<String, LastSeen>>);

impl Lines {
    /// What the line to this node was last seen to be.
    pub(super) fn to(&self, node: &str) -> LastSeen {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lines.get(node) {
            return known.clone();
        }
        if lines.len() >= MOST {
            lines.clear();
        }
        lines.entry(node.to_owned()).or_default().clone()
    }
}

/// What a line was last seen to be, for all who send over it: how many more passes may begin with its being
/// fast. Of a new one nothing is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastSeen(Arc<AtomicU32>);

impl LastSeen {
    /// Of a line that cannot be slow.
    pub(crate) fn fast() -> Self {
        let line = Self::default();
        line.is(Line::Fast);
        line
    }

    /// It was seen to be this.
    pub(super) fn is(&self, line: Line) {
        let passes = match line {
            Line::Fast => BELIEVED,
            Line::Unknown => 0,
        };
        self.0.store(passes, Ordering::Relaxed);
    }

    /// What one more pass begins with.
    fn believed(&self) -> Line {
        let one_less = |passes: u32| passes.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.0.fetch_update(set, fetch, one_less) {
            Ok(_) => Line::Fast,
            Err(_) => Line::Unknown,
        }
    }
}

/// What a pass begins with that goes over all of these: what holds for each of them.
pub(super) fn believed_of_all<'a>(lines: impl IntoIterator<Item = &'a LastSeen>) -> Line {
    let mut each = lines.into_iter().map(LastSeen::believed);
    match each.all(|line| line == Line::Fast) {
        true => Line::Fast,
        false => Line::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_to_the_next_transfer_what_it_was_to_the_last() {
        let lines = Lines::default();
        assert_eq!(lines.to("one").believed(), Line::Unknown);
        lines.to("one").is(Line::Fast);
        assert_eq!(lines.to("one").believed(), Line::Fast);
        assert_eq!(lines.to("other").believed(), Line::Unknown);
        lines.to("one").is(Line::Unknown);
        assert_eq!(lines.to("one").believed(), Line::Unknown);
    }

    #[test]
    fn who_sends_over_a_line_already_learns_what_another_sees() {
        let lines = Lines::default();
        let (one, other) = (lines.to("node"), lines.to("node"));
        one.is(Line::Fast);
        assert_eq!(other.believed(), Line::Fast);
    }

    #[test]
    fn what_nothing_was_seen_of_for_many_passes_is_not_known() {
        let line = LastSeen::fast();
        for _ in 0..BELIEVED {
            assert_eq!(line.believed(), Line::Fast);
        }
        assert_eq!(line.believed(), Line::Unknown);
        assert_eq!(line.believed(), Line::Unknown);
        line.is(Line::Fast);
        assert_eq!(line.believed(), Line::Fast);
    }

    #[test]
    fn a_pass_over_several_lines_begins_with_what_holds_for_all() {
        let (fast, unknown) = (LastSeen::fast(), LastSeen::default());
        assert_eq!(believed_of_all([&fast]), Line::Fast);
        assert_eq!(believed_of_all([&fast, &LastSeen::fast()]), Line::Fast);
        assert_eq!(believed_of_all([&unknown]), Line::Unknown);
        assert_eq!(believed_of_all([&fast, &unknown]), Line::Unknown);
        assert_eq!(believed_of_all([&unknown, &fast]), Line::Unknown);
    }

    #[test]
    fn no_more_lines_are_remembered_than_there_may_be_nodes() {
        let lines = Lines::default();
        for node in 0..10 * MOST {
            lines.to(&node.to_string()).is(Line::Fast);
            assert!(lines.0.lock().unwrap().len() <= MOST);
        }
    }
}
