//! What was tried, and what came of it, for people; and whether that is as it should be.

use std::fmt::Write;

use super::Answer;

/// Lines about attempts.
#[derive(Default)]
pub struct Table {
    lines: String,
    wrong: usize,
}

impl Table {
    /// Somebody should not get what it asked for.
    pub fn refused(&mut self, what: &str, who: &str, answer: &Answer) {
        let (is_right, came) = match answer {
            Answer::Refused(says) => (true, format!("refused: {says}")),
            Answer::Granted(_) => (false, "GRANTED, AND SHOULD NOT BE".to_owned()),
            Answer::Unreachable(says) => (false, format!("NOT TRIED, NOBODY IS THERE: {says}")),
        };
        self.line(what, who, is_right, &came);
    }

    /// Somebody should get what it asked for: else the refusals of others would show nothing.
    pub fn granted(&mut self, what: &str, who: &str, answer: &Answer) {
        let (is_right, came) = match answer {
            Answer::Granted(_) => (true, "granted, as it should be".to_owned()),
            other => (false, format!("NOT GRANTED: {other:?}")),
        };
        self.line(what, who, is_right, &came);
    }

    fn line(&mut self, what: &str, who: &str, is_right: bool, came: &str) {
        let _ = writeln!(self.lines, "{what:<44} {who:<52} {came}");
        self.wrong += usize::from(!is_right);
    }

    /// Prints it.
    ///
    /// # Panics
    /// Something was not as it should be.
    #[allow(clippy::print_stdout)] // of a test, for people
    pub fn close(self) {
        println!("{}", self.lines);
        assert_eq!(self.wrong, 0, "answers that should have been otherwise");
    }
}
