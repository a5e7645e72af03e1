//! The fleets of a run, each on its thread, and waiting for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use crossbeam_channel::Sender;
use indicatif::ProgressBar;
use ringfeed_wire::Io;

use crate::args::Common;
use crate::fleet::{Findings, Fleet, Manner};
use crate::plans::Plan;
use crate::publisher::{Audience, Published};
use crate::recorder::Recorder;
use crate::report::Tally;
use crate::signals::{Batch, Control, Phase, Progress};
use crate::target::Target;

/// How often progress is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// One fleet and its thread.
struct Member {
    thread: JoinHandle<anyhow::Result<Findings>>,
    progress: Arc<Progress>,
    coming: Sender<Arc<Batch>>,
    expected: Vec<(u32, u64)>,
    /// Connections that read.
    connections: u64,
}

/// All fleets of a run.
pub(crate) struct Crew(Vec<Member>);

impl Crew {
    pub(crate) fn muster(
        common: &Common,
        target: &Target,
        plans: Vec<Plan>,
        channels: &Arc<Vec<String>>,
        control: &Arc<Control>,
        io: Io,
    ) -> anyhow::Result<Crew> {
        let threads = usize::from(common.threads);
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
            let mut expected = vec![0u64; channels.len()];
            for plan in share.iter().filter(|plan| !plan.stalled) {
                plan.channels.iter().for_each(|&channel| expected[channel as usize] += 1);
            }
            let connections = share.iter().filter(|plan| !plan.stalled).count() as u64;
            let expected = (0u32..).zip(expected).filter(|&(_, n)| n > 0).collect();
            let (target, channels, control) = (target.clone(), channels.clone(), control.clone());
            let own = progress.clone();
            let manner =
                Manner { io, pace: common.pace, churn_per_second: common.churn / threads as f64 };
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
            members.push(Member { thread, progress, coming, expected, connections });
        }
        Ok(Crew(members))
    }

    pub(crate) fn fleet_senders(&self) -> Vec<Sender<Arc<Batch>>> {
        self.0.iter().map(|member| member.coming.clone()).collect()
    }

    pub(crate) fn audience(&self, channels: usize) -> Audience {
        let mut subscribers = vec![0; channels];
        for &(channel, count) in self.0.iter().flat_map(|member| &member.expected) {
            subscribers[channel as usize] += count;
        }
        let fleets = self.0.iter().map(|member| member.progress.clone()).collect();
        let connections = self.0.iter().map(|member| member.connections).sum();
        Audience { subscribers, connections, fleets }
    }

    pub(crate) fn total(&self, figure: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        self.0.iter().map(|member| figure(&member.progress).load(Ordering::Relaxed)).sum()
    }

    /// Waits until a figure of all fleets has reached a goal.
    pub(crate) fn wait_until(
        &mut self,
        control: &Control,
        bar: &ProgressBar,
        grace: f64,
        figure: impl Fn(&Progress) -> &AtomicU64,
        goal: u64,
        mut meanwhile: impl FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut best = (0, Instant::now());
        loop {
            let total = self.total(&figure);
            bar.set_position(total);
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
                bail!("only {total} of {goal} after {grace} seconds without progress");
            }
            meanwhile(total)?;
            std::thread::sleep(LOOK.min(Duration::from_millis(5)));
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
        before: u64,
        publishing: JoinHandle<anyhow::Result<Published>>,
    ) -> anyhow::Result<Published> {
        let every = Duration::from_millis(if live { 1000 } else { 200 });
        let mut seen = (Instant::now(), 0, 0);
        while !publishing.is_finished() {
            std::thread::sleep(LOOK);
            let elapsed = seen.0.elapsed();
            if elapsed < every {
                continue;
            }
            let published = control.published.load(Ordering::Relaxed) - before;
            let delivered = self.total(|p| &p.delivered);
            let rate = |now: u64, then: u64| (now - then) as f64 / elapsed.as_secs_f64();
            let text = format!(
                "published {:>8.0}/s   delivered {:>10.0}/s   {} subscribers",
                rate(published, seen.1),
                rate(delivered, seen.2),
                self.total(|p| &p.standing),
            );
            if live {
                println!("{text}");
            } else {
                bar.set_position(published);
                bar.set_message(text);
            }
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

    /// Waits until everything has arrived, or nothing arrives any more. Returns when the last
    /// delivery was seen.
    pub(crate) fn wait_for_all(
        &mut self,
        control: &Control,
        bar: &ProgressBar,
        published: &Published,
        grace: f64,
    ) -> anyhow::Result<Instant> {
        let goal = self.goal(published);
        let mut last = (self.total(|p| &p.delivered), Instant::now());
        loop {
            let delivered = self.total(|p| &p.delivered);
            if delivered > last.0 {
                last = (delivered, Instant::now());
                bar.set_message(format!("{delivered} delivered"));
            }
            if delivered >= goal || last.1.elapsed().as_secs_f64() > grace {
                return Ok(last.1);
            }
            if control.stopped() && self.0.iter().any(|member| member.thread.is_finished()) {
                return self.fail(control);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Deliveries of what was published, over all fleets.
    fn goal(&self, published: &Published) -> u64 {
        let by_channel = &published.by_channel;
        let of = |&(channel, n): &(u32, u64)| n * by_channel.get(channel as usize).unwrap_or(&0);
        self.0.iter().flat_map(|member| &member.expected).map(of).sum()
    }

    pub(crate) fn dismiss(self, control: &Control) -> anyhow::Result<Findings> {
        control.enter(Phase::Stop);
        let mut all =
            Findings { tally: Tally::default(), first_problem: None, latency: Recorder::new() };
        for member in self.0 {
            let found =
                member.thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            all.tally.add(&found.tally);
            all.first_problem = all.first_problem.or(found.first_problem);
            all.latency.add(&found.latency);
        }
        Ok(all)
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
