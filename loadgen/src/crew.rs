//! The fleets of a run, each on its thread, and waiting for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use crossbeam_channel::Sender;
use indicatif::ProgressBar;
use ringfeed_wire::Io;

use crate::args::{Common, Traffic};
use crate::fleet::{Findings, Fleet, Manner};
use crate::plans::Plan;
use crate::publisher::{Audience, Published};
use crate::report::{Close, spoken};
use crate::signals::{Batch, Control, Phase, Progress};
use crate::target::Target;

/// How often progress is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// Time without any message after which it is said for how long that goes on.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// One fleet and its thread.
struct Member {
    thread: JoinHandle<anyhow::Result<Findings>>,
    progress: Arc<Progress>,
    coming: Sender<Arc<Batch>>,
}

/// All fleets of a run.
#[derive(Default)]
pub(crate) struct Crew(Vec<Member>);

/// How waiting is shown.
pub(crate) struct Show<'a> {
    pub(crate) bar: &'a ProgressBar,
    /// `connections were open`.
    pub(crate) what: &'static str,
}

impl Crew {
    pub(crate) fn muster(
        common: &Common,
        traffic: &Traffic,
        target: &Target,
        plans: Vec<Plan>,
        channels: &Arc<Vec<String>>,
        control: &Arc<Control>,
        io: Io,
    ) -> anyhow::Result<Crew> {
        let (threads, conns) = (usize::from(common.threads), plans.len());
        let mut shares: Vec<Vec<Plan>> = (0..threads).map(|_| Vec::new()).collect();
        for (i, plan) in plans.into_iter().enumerate() {
            shares[i % threads].push(plan);
        }
        let mut members = Vec::new();
        for (i, share) in shares.into_iter().enumerate() {
            // What is published must be known to the fleet before it arrives: the publisher never
            // waits for a fleet. Runs are bounded by what the server takes.
            #[allow(clippy::disallowed_methods)]
            let (coming, receiver) = crossbeam_channel::unbounded();
            let progress = Arc::new(Progress::new(channels.len()));
            let (target, channels, control) = (target.clone(), channels.clone(), control.clone());
            let own = progress.clone();
            let manner = Manner {
                io,
                pace: common.pace,
                churn_per_second: traffic.churn * share.len() as f64 / conns as f64,
                warm_up: !traffic.no_warm_up,
                send: traffic.send,
                may_end: common.endings.is_some(),
            };
            let core = common.core.map(|core| usize::from(core) + i);
            let run = move || {
                if let Some(core) = core {
                    pin(core)?;
                }
                let fleet =
                    Fleet::new(target, share, channels, receiver, control.clone(), own, manner)?;
                let found = fleet.run();
                if found.is_err() {
                    control.stop();
                }
                found
            };
            let thread = std::thread::Builder::new().name(format!("fleet-{i}")).spawn(run)?;
            members.push(Member { thread, progress, coming });
        }
        Ok(Crew(members))
    }

    pub(crate) fn fleet_senders(&self) -> Vec<Sender<Arc<Batch>>> {
        self.0.iter().map(|member| member.coming.clone()).collect()
    }

    pub(crate) fn audience(&self, grace: f64) -> Audience {
        let fleets = self.0.iter().map(|member| member.progress.clone()).collect();
        Audience { fleets, grace }
    }

    pub(crate) fn total(&self, figure: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        self.0.iter().map(|member| figure(&member.progress).load(Ordering::Relaxed)).sum()
    }

    /// Waits until a figure of all fleets has reached a goal.
    pub(crate) fn wait_until(
        &mut self,
        control: &Control,
        show: Show<'_>,
        grace: f64,
        figure: impl Fn(&Progress) -> &AtomicU64,
        goal: u64,
        mut meanwhile: impl FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut best = (0, Instant::now());
        loop {
            let total = self.total(&figure);
            show.bar.set_position(total);
            if total >= goal {
                return Ok(());
            }
            if total > best.0 {
                best = (total, Instant::now());
            }
            if control.stopped() {
                return self.fail(control);
            }
            if best.1.elapsed().as_secs_f64() > grace {
                let what = show.what;
                bail!("only {total} of {goal} {what} after {grace} seconds without progress");
            }
            meanwhile(total)?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The error of a fleet that has failed, or that of an interruption.
    fn fail<T>(&mut self, control: &Control) -> anyhow::Result<T> {
        control.enter(Phase::Stop);
        for member in self.0.drain(..) {
            match member.thread.join() {
                Ok(found) => found.map(|_| ())?,
                Err(_) => bail!("a thread panicked"),
            }
        }
        bail!("interrupted")
    }

    /// Shows how publishing goes until it has ended.
    pub(crate) fn watch(
        &mut self,
        control: &Control,
        bar: &ProgressBar,
        live: bool,
        ends_ns: Option<u64>,
        before: u64,
        publishing: JoinHandle<anyhow::Result<Published>>,
    ) -> anyhow::Result<Published> {
        let every = Duration::from_millis(if live { 1000 } else { 200 });
        let mut seen = (Instant::now(), 0, 0);
        let mut silence = Silence::new();
        while !publishing.is_finished() {
            std::thread::sleep(LOOK);
            let elapsed = seen.0.elapsed();
            if elapsed < every {
                continue;
            }
            let published = control.published.load(Ordering::Relaxed) - before;
            let delivered = self.total(|p| &p.delivered);
            silence.break_if_long(published + delivered, control);
            let rate = |now: u64, then: u64| (now - then) as f64 / elapsed.as_secs_f64();
            let text = format!(
                "published {:>8.0}/s   delivered {:>10.0}/s   {} subscribers",
                rate(published, seen.1),
                rate(delivered, seen.2),
                self.total(|p| &p.standing),
            );
            let left = ends_ns.map(|ends| ends.saturating_sub(control.now_ns()));
            match left.filter(|_| !live) {
                None if live => println!("{text}"),
                None => bar.set_message(text),
                Some(left) => {
                    bar.set_message(format!("{text}   {} left", spoken(left as f64 / 1e9)));
                }
            }
            bar.set_position(published);
            seen = (Instant::now(), published, delivered);
        }
        match publishing.join() {
            // A fleet's failure explains that of the publisher better than its own words.
            Ok(Err(e)) => match self.fail::<()>(control) {
                Err(fleet) if fleet.to_string() != "interrupted" => Err(fleet),
                _ => Err(e),
            },
            Ok(published) => published,
            Err(_) => bail!("the publisher panicked"),
        }
    }

    /// Waits until everything has arrived and every subscription stands, or nothing comes any more.
    /// Returns when the last delivery was seen.
    pub(crate) fn wait_for_all(
        &mut self,
        control: &Control,
        bar: &ProgressBar,
        published: &Published,
        grace: f64,
    ) -> anyhow::Result<Instant> {
        let audience = self.audience(grace);
        let mut last = (self.total(|p| &p.delivered), Instant::now());
        let mut owing = (0, last.1);
        // A subscription that comes or goes at this very moment is seen in one figure, and not yet
        // in another: only what is so twice is so.
        let mut was_over = false;
        loop {
            let delivered = self.total(|p| &p.delivered);
            let due = audience.due_in_all(&published.by_channel);
            if delivered > last.0 {
                last = (delivered, Instant::now());
                bar.set_message(format!("{delivered} delivered"));
            }
            let owed = self.total(|p| &p.owed);
            if owed != owing.0 {
                owing = (owed, Instant::now());
            }
            let is_over = due == 0 && owed == 0;
            let silent = last.1.max(owing.1).elapsed().as_secs_f64();
            if is_over && was_over || silent > grace {
                return Ok(last.1);
            }
            was_over = is_over;
            if control.stopped() && self.0.iter().any(|member| member.thread.is_finished()) {
                return self.fail(control);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn dismiss(self, control: &Control) -> anyhow::Result<Findings> {
        control.enter(Phase::Stop);
        let mut all = Findings::default();
        for member in self.0 {
            let found =
                member.thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            all.tally.add(&found.tally);
            for close in found.closes {
                let same = |c: &&mut Close| (c.code, &c.reason) == (close.code, &close.reason);
                match all.closes.iter_mut().find(same) {
                    Some(known) => known.count += close.count,
                    None => all.closes.push(close),
                }
            }
            for note in found.notes {
                if !all.notes.contains(&note) {
                    all.notes.push(note);
                }
            }
            all.endings.extend(found.endings);
            all.first_problem = all.first_problem.or(found.first_problem);
            all.latency.add(&found.latency);
            all.cores += found.cores;
        }
        Ok(all)
    }
}

/// Says that a run lives when nothing has happened for long.
struct Silence {
    figure: u64,
    since: Instant,
    broken: bool,
}

impl Silence {
    fn new() -> Silence {
        Silence { figure: 0, since: Instant::now(), broken: false }
    }

    fn break_if_long(&mut self, figure: u64, control: &Control) {
        if figure != self.figure {
            *self = Silence { figure, ..Silence::new() };
        }
        let due_ns = control.next_due_ns.load(Ordering::Relaxed);
        let left = due_ns.saturating_sub(control.now_ns()) as f64 / 1e9;
        if !self.broken && self.since.elapsed() > SILENCE_MAX && left > 0.0 {
            self.broken = true;
            eprintln!("loadgen: the next message is due in {}", spoken(left));
        }
    }
}

/// Keeps the calling thread on one core.
fn pin(core: usize) -> anyhow::Result<()> {
    let known = core_affinity::get_core_ids().unwrap_or_default();
    let Some(id) = known.iter().find(|id| id.id == core) else {
        bail!("--core: there is no core {core}; there are {}", known.len());
    };
    if !core_affinity::set_for_current(*id) {
        bail!("--core: the thread could not be pinned to core {core}");
    }
    Ok(())
}
