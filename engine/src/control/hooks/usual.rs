//! How long an application usually takes, so that nothing is sent to it whose answer would come too late.

use std::cell::Cell;
use std::time::Duration;

/// An answer counts for one part in so many; those before it for the rest.
const PARTS: u32 = 8;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Usual(Cell<Duration>);

impl Usual {
    /// An answer took so long.
    pub(super) fn learn(&self, took: Duration) {
        self.0.set(self.0.get() - self.0.get() / PARTS + took / PARTS);
    }

    /// Whether an answer can be expected within so much time.
    pub(super) fn fits(&self, left: Duration) -> bool {
        left >= self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_answered_in_time_is_known_by_the_answers_before() {
        let (usual, ms) = (Usual::default(), Duration::from_millis);
        assert!(usual.fits(Duration::ZERO), "nothing is known yet");
        (0..50).for_each(|_| usual.learn(ms(200)));
        assert!(!usual.fits(ms(190)) && usual.fits(ms(200)));
        usual.learn(ms(1000));
        assert!(!usual.fits(ms(290)) && usual.fits(ms(310)), "one slow one says little");
        (0..50).for_each(|_| usual.learn(ms(5)));
        assert!(usual.fits(ms(10)));
    }
}
