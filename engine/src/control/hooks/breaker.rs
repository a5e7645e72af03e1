//! Stops asking what fails, and tries it again with one question from time to time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

/// Longest that it stays open at once.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// Wherever something has failed: whether all that failed may allow ([`super::failure::Failure::may_allow`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everything passes; so many requests failed one after the other.
    Closed { failures: u32, may_allow: bool },
    /// Nothing passes until then.
    Open { until: Instant, delay: Duration, may_allow: bool },
    /// One is under way to try it.
    HalfOpen { delay: Duration, may_allow: bool },
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

impl State {
    /// Nothing has failed.
    const GOOD: State = State::Closed { failures: 0, may_allow: true };
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
        let inner = Inner { state: State::GOOD, generation: 0 };
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

    /// Whether all that keeps it open may allow: where the application was heard, clients may have brought it about, and
    /// it is no yes for anybody.
    pub(super) fn may_allow(&self) -> bool {
        match self.inner.borrow().state {
            State::Closed { .. } => false,
            State::Open { may_allow, .. } | State::HalfOpen { may_allow, .. } => may_allow,
        }
    }

    /// Lets a request through, or not.
    pub(super) fn pass(self: &Rc<Self>, now: Instant) -> Option<Pass> {
        if !self.lets_through(now) {
            return None;
        }
        let mut inner = self.inner.borrow_mut();
        if let State::Open { delay, may_allow, .. } = inner.state {
            inner.become_(State::HalfOpen { delay, may_allow });
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

    fn open(&self, inner: &mut Inner, delay: Duration, may_allow: bool) {
        // Up to a quarter more, so that the servers of a cluster do not all try at once.
        let until = Instant::now() + delay.mul_f64(1.0 + rand::random::<f64>() / 4.0);
        inner.become_(State::Open { until, delay, may_allow });
    }
}

impl Pass {
    /// The application has answered.
    pub(super) fn succeeded(mut self) {
        self.settle(Ok(()));
    }

    /// It has not, in a way that may allow or not.
    pub(super) fn failed(mut self, may_allow: bool) {
        self.settle(Err(may_allow));
    }

    /// It came to nothing, which is nobody's fault.
    pub(super) fn withdraw(mut self) {
        let state = self.breaker.inner.borrow().state;
        match state {
            // A try that tells nothing must be followed by another one.
            State::HalfOpen { may_allow, .. } => self.settle(Err(may_allow)),
            _ => self.told = true,
        }
    }

    /// What came of it; an error says whether it may allow.
    fn settle(&mut self, result: Result<(), bool>) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let Breaker { failures_max, open, ref inner } = *self.breaker;
        let mut inner = inner.borrow_mut();
        if inner.generation != self.generation {
            return;
        }
        match (inner.state, result) {
            (State::Closed { .. }, Ok(())) => inner.state = State::GOOD,
            (State::HalfOpen { .. }, Ok(())) => inner.become_(State::GOOD),
            (State::Closed { failures, may_allow }, Err(this)) => {
                let (failures, may_allow) = (failures + 1, may_allow && this);
                if failures < failures_max {
                    inner.state = State::Closed { failures, may_allow };
                } else {
                    self.breaker.open(&mut inner, open, may_allow);
                }
            }
            // It is this one alone that keeps it open.
            (State::HalfOpen { delay, .. }, Err(may_allow)) => {
                self.breaker.open(&mut inner, (delay * 2).min(OPEN_MAX), may_allow);
            }
            (State::Open { .. }, _) => {}
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.settle(Err(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Duration = Duration::from_secs(2);

    fn fail(breaker: &Rc<Breaker>) {
        breaker.pass(Instant::now()).unwrap().failed(true);
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
            breaker.pass(Instant::now()).unwrap().succeeded();
        }
        (0..3).for_each(|_| fail(&breaker));
        assert_eq!((breaker.level(), breaker.pass(Instant::now()).is_none()), (2, true));
        wait(&breaker).await;
        let trying = breaker.pass(Instant::now()).unwrap();
        assert_eq!((breaker.level(), breaker.pass(Instant::now()).is_none()), (1, true));
        trying.succeeded();
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
    async fn it_knows_whether_all_that_keeps_it_open_may_allow() {
        let opened_by = |failures: [bool; 3]| {
            let breaker = Breaker::new(3, OPEN);
            for may_allow in failures {
                assert!(!breaker.may_allow());
                breaker.pass(Instant::now()).unwrap().failed(may_allow);
            }
            assert_eq!(breaker.level(), 2);
            breaker
        };
        assert!(opened_by([true; 3]).may_allow());
        for failures in [[false, true, true], [true, false, true], [true, true, false]] {
            assert!(!opened_by(failures).may_allow(), "{failures:?}");
        }
        let breaker = opened_by([false, true, true]);
        // What opened it before is past once a try has failed in another way; and one that tells nothing changes nothing.
        for (failure, may_allow) in
            [(None, false), (Some(true), true), (None, true), (Some(false), false)]
        {
            wait(&breaker).await;
            let trying = breaker.pass(Instant::now()).unwrap();
            match failure {
                Some(may_allow) => trying.failed(may_allow),
                None => trying.withdraw(),
            }
            assert_eq!((breaker.level(), breaker.may_allow()), (2, may_allow));
        }
        // Nor is what failed before a success remembered.
        wait(&breaker).await;
        breaker.pass(Instant::now()).unwrap().succeeded();
        breaker.pass(Instant::now()).unwrap().failed(false);
        breaker.pass(Instant::now()).unwrap().succeeded();
        (0..3).for_each(|_| fail(&breaker));
        assert!(breaker.may_allow());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_before_it_opened_says_nothing_afterwards() {
        let breaker = Breaker::new(1, OPEN);
        let [early, late] = [(); 2].map(|()| breaker.pass(Instant::now()).unwrap());
        fail(&breaker);
        early.succeeded();
        assert_eq!(breaker.level(), 2);
        wait(&breaker).await;
        let trying = breaker.pass(Instant::now()).unwrap();
        late.failed(true);
        assert_eq!(breaker.level(), 1);
        trying.succeeded();
        assert_eq!(breaker.level(), 0);
    }
}
