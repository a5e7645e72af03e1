//! Bytes that all requests together may hold.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// A sum of bytes, shared. What holds a part of it gives it back when dropped.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    free: Arc<Semaphore>,
    total: usize,
}

/// A part of a [`Budget`].
#[derive(Debug)]
pub(super) struct Held {
    budget: Budget,
    permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(total: u64) -> Budget {
        let total = usize::try_from(total).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Budget { free: Arc::new(Semaphore::new(total)), total }
    }

    /// Holds nothing yet.
    pub(super) fn hold(&self) -> Held {
        Held { budget: self.clone(), permit: None }
    }

    /// Bytes held by somebody.
    pub(super) fn in_use(&self) -> usize {
        self.total - self.free.available_permits()
    }
}

impl Held {
    fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// What is missing to hold so many bytes. One that alone is larger than the budget takes all of it.
    fn missing(&self, bytes: usize) -> u32 {
        let missing = bytes.min(self.budget.total).saturating_sub(self.bytes());
        u32::try_from(missing).unwrap_or(u32::MAX)
    }

    fn take(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
    }

    /// Holds at least so many bytes, if they are free.
    pub(super) fn try_grow_to(&mut self, bytes: usize) -> bool {
        let missing = self.missing(bytes);
        if missing == 0 {
            return true;
        }
        let more = self.budget.free.clone().try_acquire_many_owned(missing);
        more.map(|more| self.take(more)).is_ok()
    }

    /// Waits until so many bytes are free. Whoever holds some already must not wait without an end:
    /// others may wait for them.
    pub(super) async fn grow_to(&mut self, bytes: usize, deadline: Instant) -> bool {
        let missing = self.missing(bytes);
        if missing == 0 {
            return true;
        }
        let more = self.budget.free.clone().acquire_many_owned(missing);
        match timeout_at(deadline, more).await {
            Ok(Ok(more)) => {
                self.take(more);
                true
            }
            _ => false,
        }
    }

    /// Gives back what is more than so many bytes.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.permit {
            let spare = permit.num_permits().saturating_sub(bytes);
            drop(permit.split(spare));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let budget = Budget::new(100);
        let (mut a, mut b) = (budget.hold(), budget.hold());
        assert!(a.try_grow_to(60) && a.try_grow_to(40) && !b.try_grow_to(41) && b.try_grow_to(40));
        assert_eq!(budget.in_use(), 100);
        a.shrink_to(10);
        assert!(b.try_grow_to(90));
        drop((a, b));
        assert_eq!(budget.in_use(), 0);
        // Larger than everything: alone it passes.
        assert!(budget.hold().try_grow_to(1000));
    }
}
