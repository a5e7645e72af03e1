//! Text from outside, made fit for an error message: never long, never a control character.
//!
//! An error that repeats what came would let a peer choose its length and its escape sequences.

use std::fmt::{self, Display, Write};

/// Longest text that an error says about what came, in bytes.
pub const DETAIL_BYTES_MAX: usize = 200;
/// Longest name that an error repeats, in bytes.
pub const NAME_SHOWN_BYTES_MAX: usize = 64;

/// Stands where text was cut off.
const CUT: char = '…';

/// Shows at most `bytes_max` bytes of what `T` displays and `…` where there is more; control
/// characters, line and paragraph separators and changes of writing direction are shown escaped.
#[derive(Debug, Clone, Copy)]
pub struct Printable<T> {
    what: T,
    bytes_max: usize,
}

impl<T: Display> Printable<T> {
    /// `bytes_max` counts what is shown, escapes included, `…` not.
    pub fn new(what: T, bytes_max: usize) -> Printable<T> {
        Printable { what, bytes_max }
    }

    /// A name from outside.
    pub fn name(what: T) -> Printable<T> {
        Printable::new(what, NAME_SHOWN_BYTES_MAX)
    }
}

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = Shown { to: f, left: self.bytes_max, failed: Ok(()) };
        if write!(shown, "{}", self.what).is_err() {
            shown.failed?;
            return f.write_char(CUT);
        }
        Ok(())
    }
}

/// Lets bytes through until none are left; an error ends the formatting of what is shown.
struct Shown<'a, 'b> {
    to: &'a mut fmt::Formatter<'b>,
    left: usize,
    failed: fmt::Result,
}

impl Shown<'_, '_> {
    fn put(&mut self, c: char) -> fmt::Result {
        let Some(left) = self.left.checked_sub(c.len_utf8()) else { return Err(fmt::Error) };
        self.left = left;
        self.failed = self.to.write_char(c);
        self.failed
    }
}

impl Write for Shown<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if !is_unfit(c) {
                self.put(c)?;
                continue;
            }
            let escape = c.escape_unicode();
            if escape.len() > self.left {
                return Err(fmt::Error);
            }
            escape.into_iter().try_for_each(|c| self.put(c))?;
        }
        Ok(())
    }
}

/// Whether a terminal or a log might take it for more than a sign.
fn is_unfit(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A short text that says what is wrong: bounded and printable from the moment it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct Detail(std::borrow::Cow<'static, str>);

impl Detail {
    /// At most [`DETAIL_BYTES_MAX`] bytes of what `what` displays.
    pub fn new(what: impl Display) -> Detail {
        Detail(Printable::new(what, DETAIL_BYTES_MAX).to_string().into())
    }
}

impl From<&'static str> for Detail {
    fn from(text: &'static str) -> Detail {
        Detail(text.into())
    }
}

impl Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_shown_as_it_is() {
        assert_eq!(Printable::new("räume/1", 8).to_string(), "räume/1");
        assert_eq!(Detail::new("'channel' is missing").to_string(), "'channel' is missing");
    }

    #[test]
    fn what_does_not_fit_is_cut_between_characters() {
        assert_eq!(Printable::new("räume", 2).to_string(), "r…");
        assert_eq!(Printable::new("räume", 3).to_string(), "rä…");
        let detail = Detail::new("x".repeat(100_000)).to_string();
        assert_eq!(detail.len(), DETAIL_BYTES_MAX + CUT.len_utf8());
    }

    #[test]
    fn nothing_reaches_a_terminal_that_is_not_a_sign() {
        let shown = Printable::new("a\u{1b}[2J\r\n\u{7f}\u{9b}\u{202e}b", 100).to_string();
        assert_eq!(shown, "a\\u{1b}[2J\\u{d}\\u{a}\\u{7f}\\u{9b}\\u{202e}b");
        let cut = Printable::new("\u{7f}".repeat(1000), 20).to_string();
        assert_eq!(cut, "\\u{7f}\\u{7f}\\u{7f}…", "an escape is whole or not there");
    }
}
