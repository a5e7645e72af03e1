//! Stops asking what fails, and tries it again with one question from time to time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

/// Longest that it stays open at once.
const OPEN_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everything passes; so many requests failed one after the other.
    Closed { failures: u32 },
    /// Nothing passes until then.
    Open { until: Instant, delay: Duration },
    /// One is under way to try it.
    HalfOpen { delay: Duration },
}

/// Of one hook.
#[derive(Debug)]
pub(super) struct Breaker {
    failures_max: u32,
    open: Duration,
    inner: RefCell<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Counts changes of state: what was let through before one says nothing about what is now.
    generation: u64,
}

impl Inner {
    fn become_(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

/// A request may be sent. Dropped without a word, it has failed.
#[derive(Debug)]
pub(super) struct Pass {
    breaker: Rc<Breaker>,
    generation: u64,
    told: bool,
}

impl Breaker {
    pub(super) fn new(failures_max: u32, open: Duration) -> Rc<Breaker> {
        let inner = Inner { state: State::Closed { failures: 0 }, generation: 0 };
        Rc::new(Breaker { failures_max, open, inner: RefCell::new(inner) })
    }

    /// Whether it was made with these bounds.
    pub(super) fn has(&self, failures_max: u32, open: Duration) -> bool {
        (self.failures_max, self.open) == (failures_max, open)
    }

    /// Whether a request would be let through.
    pub(super) fn lets_through(&self, now: Instant) -> bool {
        match self.inner.borrow().state {
            State::Closed { .. } => true,
            State::Open { until, .. } => now >= until,
            State::HalfOpen { .. } => false,
        }
    }

    /// Lets a request through, or not.
    pub(super) fn pass(self: &Rc<Self>, now: Instant) -> Option<Pass> {
        if !self.lets_through(now) {
            return None;
        }
        let mut inner = self.inner.borrow_mut();
        if let State::Open { delay, .. } = inner.state {
            inner.become_(State::HalfOpen { delay });
        }
        Some(Pass { breaker: self.clone(), generation: inner.generation, told: false })
    }

    /// 0 closed, 1 half open, 2 open.
    pub(super) fn level(&self) -> u64 {
        match self.inner.borrow().state {
            State::Closed { .. } => 0,
            State::HalfOpen { .. } => 1,
            State::Open { .. } => 2,
        }
    }

    fn open(&self, inner: &mut Inner, delay: Duration) {
        // Up to a quarter more, so that the servers of a cluster do not all try at once.
        let until = Instant::now() + delay.mul_f64(1.0 + rand::random::<f64>() / 4.0);
        inner.become_(State::Open { until, delay });
    }
}

impl Pass {
    /// What came of the request.
    pub(super) fn tell(mut self, success: bool) {
        self.settle(success);
    }

    /// It came to nothing, which is nobody's fault.
    pub(super) fn withdraw(mut self) {
        // A try that tells nothing must be followed by another one.
        let closed = matches!(self.breaker.inner.borrow().state, State::Closed { .. });
        self.told = closed;
    }

    fn settle(&mut self, success: bool) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let Breaker { failures_max, open, ref inner } = *self.breaker;
        let mut inner = inner.borrow_mut();
        if inner.generation != self.generation {
            return;
        }
        match inner.state {
            State::Closed { .. } if success => inner.state = State::Closed { failures: 0 },
            State::HalfOpen { .. } if success => inner.become_(State::Closed { failures: 0 }),
            State::Closed { failures } if failures + 1 < failures_max => {
                inner.state = State::Closed { failures: failures + 1 };
            }
            State::Closed { .. } => self.breaker.open(&mut inner, open),
            State::HalfOpen { delay } => {
                self.breaker.open(&mut inner, (delay * 2).min(OPEN_MAX));
            }
            State::Open { .. } => {}
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.settle(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Duration = Duration::from_secs(2);

    fn fail(breaker: &Rc<Breaker>) {
        breaker.pass(Instant::now()).unwrap().tell(false);
    }

    /// Until it lets one through: how long that was.
    async fn wait(breaker: &Rc<Breaker>) -> Duration {
        let from = Instant::now();
        while !breaker.lets_through(Instant::now()) {
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        from.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_one_after_the_other_open_it_and_a_try_closes_it() {
        let breaker = Breaker::new(3, OPEN);
        for _ in 0..2 {
            (0..2).for_each(|_| fail(&breaker));
            breaker.pass(Instant::now()).unwrap().tell(true);
        }
        (0..3).for_each(|_| fail(&breaker));
        assert_eq!((breaker.level(), breaker.pass(Instant::now()).is_none()), (2, true));
        wait(&breaker).await;
        let trying = breaker.pass(Instant::now()).unwrap();
        assert_eq!((breaker.level(), breaker.pass(Instant::now()).is_none()), (1, true));
        trying.tell(true);
        assert_eq!(breaker.level(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn each_try_that_fails_doubles_the_time_up_to_half_a_minute() {
        let breaker = Breaker::new(1, OPEN);
        fail(&breaker);
        for seconds in [2, 4, 8, 16, 30, 30] {
            let waited = wait(&breaker).await.as_secs_f64();
            let expected = f64::from(seconds);
            assert!((expected - 0.1..=expected * 1.25 + 0.1).contains(&waited), "{waited}");
            // Given up, as when the question's time is over.
            drop(breaker.pass(Instant::now()));
            assert_eq!(breaker.level(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_to_nothing_counts_for_a_try_alone() {
        let breaker = Breaker::new(1, OPEN);
        (0..9).for_each(|_| breaker.pass(Instant::now()).unwrap().withdraw());
        assert_eq!(breaker.level(), 0);
        fail(&breaker);
        wait(&breaker).await;
        breaker.pass(Instant::now()).unwrap().withdraw();
        assert_eq!(breaker.level(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_before_it_opened_says_nothing_afterwards() {
        let breaker = Breaker::new(1, OPEN);
        let [early, late] = [(); 2].map(|()| breaker.pass(Instant::now()).unwrap());
        fail(&breaker);
        early.tell(true);
        assert_eq!(breaker.level(), 2);
        wait(&breaker).await;
        let trying = breaker.pass(Instant::now()).unwrap();
        late.tell(false);
        assert_eq!(breaker.level(), 1);
        trying.tell(true);
        assert_eq!(breaker.level(), 0);
    }
}
