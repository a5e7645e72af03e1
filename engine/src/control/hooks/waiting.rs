//! How many questions wait at a hook, and how many bytes they hold.

use std::sync::Arc;

use super::figures::{Figures, Hook};

/// A question that waits; it does so no more when this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    figures: Arc<Figures>,
    hook: Hook,
    bytes: u64,
}

impl Waiting {
    /// `None` where it would be too many.
    pub(super) fn enter(
        figures: &Arc<Figures>,
        hook: Hook,
        bytes: usize,
        count_max: u32,
        bytes_max: u64,
    ) -> Option<Waiting> {
        let of = figures.of(hook);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let all = of.waiting_bytes.read().saturating_add(bytes);
        if of.waiting.read() >= count_max.into() || all > bytes_max {
            return None;
        }
        of.waiting.add(1);
        of.waiting_bytes.set(all);
        Some(Waiting { figures: figures.clone(), hook, bytes })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let of = self.figures.of(self.hook);
        of.waiting.set(of.waiting.read().saturating_sub(1));
        of.waiting_bytes.set(of.waiting_bytes.read().saturating_sub(self.bytes));
    }
}
