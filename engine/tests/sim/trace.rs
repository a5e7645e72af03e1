//! What happened, one line an event, when somebody wants to read it.

use std::cell::{Cell, RefCell};
use std::fmt::Arguments;
use std::rc::Rc;
use std::time::Duration;

/// Where the lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracing {
    Off,
    /// To standard output as they come, so that the last one stands before a panic.
    Print,
    /// Kept, to be compared.
    Keep,
}

#[derive(Debug)]
pub(crate) struct Trace {
    tracing: Tracing,
    elapsed: Rc<Cell<Duration>>,
    kept: RefCell<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(tracing: Tracing, elapsed: Rc<Cell<Duration>>) -> Trace {
        Trace { tracing, elapsed, kept: RefCell::default() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.tracing != Tracing::Off
    }

    pub(crate) fn line(&self, what: Arguments) {
        let now = self.elapsed.get();
        let line = format!("{:>7}.{:03} {what}", now.as_millis(), now.subsec_micros() % 1000);
        match self.tracing {
            Tracing::Off => {}
            Tracing::Print => println!("{line}"),
            Tracing::Keep => self.kept.borrow_mut().push(line),
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        self.kept.take()
    }
}

/// Formats only when somebody reads.
macro_rules! note {
    ($trace:expr, $($what:tt)*) => {
        if $trace.is_on() {
            $trace.line(format_args!($($what)*));
        }
    };
}
pub(crate) use note;

/// Bytes for a reader: as text where they are, shortened.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 160;
    let text: String = bytes
        .iter()
        .take(MOST)
        .flat_map(|&b| std::ascii::escape_default(b))
        .map(char::from)
        .collect();
    if bytes.len() > MOST { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}
