//! One run from start to end: open, subscribe, publish, wait, report.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use ringfeed_wire::{Io, process_cpu_time};

use crate::args::Common;
use crate::crew::{Crew, LOOK, Show};
use crate::feed::Feed;
use crate::machine::{check_limits, choose_io, kernel_bytes};
use crate::plans::{Plan, Speech, plans};
use crate::plot::Plot;
use crate::publisher::{Published, Publisher};
use crate::report::{LoadgenCost, Report, ServerMemory, rfc3339};
use crate::server::ServerState;
use crate::signals::Control;
use crate::target::Target;
use crate::tokens;

/// Time without one after which subscriptions that cannot be acknowledged are asked for a sign of
/// life.
const WARM_UP_EVERY: Duration = Duration::from_millis(300);

/// What is looked at before and after.
struct Moment {
    server: Option<ServerState>,
    kernel: Option<u64>,
    cpu: (Duration, Duration),
    at: Instant,
}

impl Moment {
    fn take(target: &Target) -> anyhow::Result<Moment> {
        let server = ServerState::fetch(target)?;
        Ok(Moment { server, kernel: kernel_bytes(), cpu: process_cpu_time(), at: Instant::now() })
    }
}

/// A run under way.
struct Run {
    common: Common,
    target: Target,
    io: Io,
    control: Arc<Control>,
    channels: Arc<Vec<String>>,
    crew: Crew,
    subscriptions: u64,
    /// Those of them that the server acknowledges, with the offset at which they stand.
    acknowledged: u64,
    /// All others are shown to stand by warm-up messages.
    needs_warm_up: bool,
}

/// How long the parts took.
#[derive(Default)]
struct Seconds {
    opening: f64,
    subscribing: f64,
    delivering: f64,
    closing: f64,
}

/// Runs what was asked for and shows the report. `false` if something was lost.
pub(crate) fn run(plot: Plot) -> anyhow::Result<bool> {
    let json = plot.common.json.clone();
    if let Some(path) = &json {
        check_writable(path).with_context(|| format!("--json {}", path.display()))?;
    }
    if let Some(path) = &plot.common.endings {
        check_writable(path).with_context(|| format!("--endings {}", path.display()))?;
    }
    let report = play(plot)?;
    print!("{}", report.text());
    if let Some(path) = &json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("--json {}", path.display()))?;
    }
    Ok(report.passed)
}

/// A report that cannot be written is told before the run, not after.
fn check_writable(path: &Path) -> anyhow::Result<()> {
    let existed = path.exists();
    std::fs::OpenOptions::new().append(true).create(true).open(path)?;
    if !existed {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn play(mut plot: Plot) -> anyhow::Result<Report> {
    let started_at = rfc3339(SystemTime::now());
    let feed = std::mem::replace(&mut plot.feed, Box::new(Nothing));
    let planned = if plot.hold.is_some() { Some(0) } else { feed.len() };
    let target = Target::new(&plot.common, plot.traffic.churn)?;
    let at_first = Moment::take(&target)?;
    let mut run = Run::start(&plot, target, &*feed)?;
    let mut seconds = Seconds::default();

    run.open(&mut seconds)?;
    let publisher = run.subscribe(&plot, &mut seconds)?;
    let before = Moment::take(&run.target)?;
    let published = run.publish(&plot, feed, publisher)?;
    seconds.delivering = run.last_delivery(&published)?.duration_since(before.at).as_secs_f64();
    let after = Moment::take(&run.target)?;

    let closing = Instant::now();
    let bytes_received = run.crew.total(|p| &p.bytes);
    let crew = std::mem::take(&mut run.crew);
    let findings = crew.dismiss(&run.control)?;
    if let Some(path) = &run.common.endings {
        tokens::write(path, &findings.endings)?;
    }
    seconds.closing = closing.elapsed().as_secs_f64();

    let (common, tally) = (&run.common, findings.tally);
    let interrupted = run.control.is_interrupted() && !plot.live;
    let gave_up = published.gave_up.as_deref();
    let (passed, verdict) = Report::judge(&tally, published.messages, planned, gave_up);
    let cpu = (after.cpu.0 - before.cpu.0, after.cpu.1 - before.cpu.1);
    Ok(Report {
        passed,
        verdict: if interrupted {
            format!("INTERRUPTED: {}", of_planned(&published, planned) + &verdict)
        } else {
            verdict
        },
        version: env!("CARGO_PKG_VERSION"),
        started_at,
        arguments: arguments(std::env::args().skip(1)),
        interest: plot.traffic.interest.name(),
        seed: plot.traffic.seed,
        interrupted,
        planned,
        scenario: plot.name,
        url: common.url.clone(),
        connections: common.conns,
        subscriptions: run.subscriptions,
        channels: run.channels.len(),
        published: published.messages,
        refused: published.refused,
        published_per_second: per_second(published.messages, published.seconds),
        tally,
        delivered_per_second: per_second(tally.delivered, seconds.delivering),
        bytes_received,
        latency_us: findings.latency.latency(),
        opening_seconds: seconds.opening,
        subscribing_seconds: seconds.subscribing,
        publishing_seconds: published.seconds,
        delivering_seconds: seconds.delivering,
        publisher_late_max_us: published.late_max_ns as f64 / 1000.0,
        loadgen: LoadgenCost {
            cpu_user_seconds: cpu.0.as_secs_f64(),
            cpu_system_seconds: cpu.1.as_secs_f64(),
            cores: (cpu.0 + cpu.1).as_secs_f64() / (after.at - before.at).as_secs_f64(),
            connection_cores: findings.cores,
            cores_allowed: allowed_cores(common),
        },
        // Who watches a live feed stays when it ends: nothing is to be waited for.
        server_memory: match plot.live {
            true => None,
            false => server_memory(&at_first, &before, &run.target)?,
        },
        kernel_bytes_per_connection: kernel_growth(&at_first, &before)
            .map(|bytes| bytes as f64 / f64::from(common.conns)),
        server: before
            .server
            .zip(after.server)
            .map(|(before, after)| before.cost(&after, tally.delivered)),
        closing_seconds: seconds.closing,
        stalled: plot.traffic.stalled.min(common.conns),
        io: run.io.to_string(),
        closes: findings.closes,
        first_problem: findings.first_problem,
        notes: findings.notes,
    })
}

impl Run {
    /// Checks everything that can be checked, and has the fleets begin to connect.
    fn start(plot: &Plot, target: Target, feed: &dyn Feed) -> anyhow::Result<Run> {
        let Plot { common, traffic, .. } = plot;
        let io = choose_io(common.io)?;
        common.templates.check(&common.url, common.api.is_some())?;
        check_limits(common, &target, io)?;
        let channels = Arc::new(feed.channels().to_vec());
        let mut plans = plans(common, traffic, plot.dialect, u32::try_from(channels.len())?);
        if let Some(path) = &common.tokens {
            let shown = tokens::read(path, common.conns)?;
            plans.iter_mut().zip(shown).for_each(|(plan, shown)| plan.shown = shown);
        }
        if traffic.send && plans.iter().any(|p| p.speech != Speech::Raw || p.channels.len() != 1) {
            bail!("--send needs --dialect raw and one subscription a connection");
        }
        let count = |plan: &Plan| plan.channels.len() as u64;
        let subscriptions: u64 = plans.iter().map(count).sum();
        let told = plans.iter().filter(|plan| plan.speech == Speech::Ringfeed);
        let acknowledged = told.map(count).sum();
        let needs_warm_up = acknowledged < subscriptions && !traffic.no_warm_up && !traffic.send;
        if traffic.churn > 0.0 && acknowledged < subscriptions {
            bail!(
                "--churn needs --dialect ringfeed: others are not told from where on they receive"
            );
        }
        let control = Arc::new(Control::new());
        let stop = control.clone();
        // A second Ctrl-C ends the process at once.
        ctrlc::set_handler(move || {
            if stop.interrupt() {
                std::process::exit(130);
            }
        })?;
        let crew = Crew::muster(common, traffic, &target, plans, &channels, &control, io)?;
        Ok(Run {
            common: common.clone(),
            target,
            io,
            control,
            channels,
            crew,
            subscriptions,
            acknowledged,
            needs_warm_up,
        })
    }

    fn open(&mut self, seconds: &mut Seconds) -> anyhow::Result<()> {
        let begun = Instant::now();
        let conns = self.common.conns.into();
        let bar = bar(&self.common, conns, "opening");
        let show = Show { bar: &bar, what: "connections were open" };
        let (control, grace) = (&self.control, self.common.grace);
        self.crew.wait_until(control, show, grace, |p| &p.opened, conns, |_| Ok(()))?;
        bar.finish_and_clear();
        seconds.opening = begun.elapsed().as_secs_f64();
        Ok(())
    }

    /// Waits until every subscription stands. Returns what publishes, if anything is to be.
    fn subscribe(
        &mut self,
        plot: &Plot,
        seconds: &mut Seconds,
    ) -> anyhow::Result<Option<Publisher>> {
        let begun = Instant::now();
        let bar = bar(&self.common, self.subscriptions, "subscribing");
        let mut publisher = match plot.hold {
            Some(_) if !self.needs_warm_up => None,
            _ => Some(Publisher::connect(
                &self.target,
                &plot.traffic,
                self.channels.to_vec(),
                self.crew.fleet_senders(),
                self.control.clone(),
                self.crew.audience(self.common.grace),
            )?),
        };
        if self.needs_warm_up && plot.hold.is_none() && !self.common.quiet {
            eprintln!(
                "loadgen: messages {{\"warmup\":…}} go to the channels first, because not all \
                 subscriptions are acknowledged; --no-warm-up has it without"
            );
        }
        let all: Vec<u32> = (0..).take(self.channels.len()).collect();
        let (mut round, mut stood, mut warmed) = (0, 0, None::<Instant>);
        let (needs_warm_up, acknowledged) = (self.needs_warm_up, self.acknowledged);
        let meanwhile = |standing| {
            if standing > stood {
                // It is under way: more would only be in the way.
                (stood, warmed) = (standing, Some(Instant::now()));
            }
            // What is published to a channel before its offset is known could not be counted.
            if needs_warm_up
                && standing >= acknowledged
                && let Some(publisher) = &mut publisher
                && warmed.is_none_or(|at| at.elapsed() > WARM_UP_EVERY)
            {
                warmed = Some(Instant::now());
                round += 1;
                publisher.warm_up(&all, round)?;
            }
            Ok(())
        };
        let show = Show { bar: &bar, what: "subscriptions stood" };
        let (control, grace, goal) = (&self.control, self.common.grace, self.subscriptions);
        self.crew.wait_until(control, show, grace, |p| &p.standing, goal, meanwhile)?;
        bar.finish_and_clear();
        seconds.subscribing = begun.elapsed().as_secs_f64();
        if plot.traffic.no_warm_up || plot.traffic.send {
            // Nobody says when they stand: they are given a moment.
            std::thread::sleep(WARM_UP_EVERY);
        }
        Ok(publisher)
    }

    /// Publishes the feed on a thread of its own and shows how it goes.
    fn publish(
        &mut self,
        plot: &Plot,
        feed: Box<dyn Feed>,
        publisher: Option<Publisher>,
    ) -> anyhow::Result<Published> {
        let control = &self.control;
        let settle = Duration::try_from_secs_f64(plot.traffic.settle).unwrap_or_default();
        let counts_from_ns = control.now_ns() + settle.as_nanos() as u64;
        control.counts_from_ns.store(counts_from_ns, Ordering::Relaxed);
        let before = control.published.load(Ordering::Relaxed);
        let bar = bar(&self.common, feed.len().unwrap_or(0), "publishing");
        let ends_ns = match (plot.hold, plot.until_ns.or(feed.lasts_ns())) {
            (Some(hold), _) => Some(hold.as_nanos() as u64),
            (None, ends_ns) => ends_ns,
        };
        let ends_ns = ends_ns.map(|ns| control.now_ns().saturating_add(ns));
        control.set_publishing(true);
        let publishing = self.begin_publishing(plot, feed, publisher)?;
        let published = self.crew.watch(control, &bar, plot.live, ends_ns, before, publishing)?;
        bar.finish_and_clear();
        Ok(published)
    }

    fn begin_publishing(
        &self,
        plot: &Plot,
        mut feed: Box<dyn Feed>,
        publisher: Option<Publisher>,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<Published>>> {
        let control = self.control.clone();
        let (until_ns, hold) = (plot.until_ns, plot.hold);
        let publish = move || {
            if let Some(hold) = hold {
                sleep_until_stopped(hold, &control);
            }
            let Some(mut publisher) = publisher else { return Ok(Published::default()) };
            let mut published = publisher.run(&mut *feed, until_ns)?;
            let (unfinished, refused) = publisher.finish()?;
            published.refused = refused;
            published.gave_up = published.gave_up.or(unfinished);
            Ok(published)
        };
        Ok(std::thread::Builder::new().name("publisher".into()).spawn(publish)?)
    }

    /// Waits until all has arrived, or nothing does any more.
    fn last_delivery(&mut self, published: &Published) -> anyhow::Result<Instant> {
        self.control.set_publishing(false);
        let bar = bar(&self.common, 0, "receiving");
        let last = self.crew.wait_for_all(&self.control, &bar, published, self.common.grace)?;
        bar.finish_and_clear();
        Ok(last)
    }
}

/// How far an interrupted run came.
fn of_planned(published: &Published, planned: Option<u64>) -> String {
    match planned {
        Some(0) => String::new(),
        Some(planned) => format!("{} of {planned} messages were published; ", published.messages),
        None => format!("{} messages were published; ", published.messages),
    }
}

/// The command line as it may be shown: without the API key and the token.
fn arguments(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut hidden = false;
    let secrets = ["--api-key", "--publisher-token"];
    let show = |argument: String| {
        let is_secret = std::mem::replace(&mut hidden, secrets.contains(&&*argument));
        match argument.split_once('=') {
            _ if is_secret => "***".to_owned(),
            Some((name, _)) if secrets.contains(&name) => format!("{name}=***"),
            _ => argument,
        }
    };
    all.map(show).collect()
}

fn server_memory(
    at_first: &Moment,
    open: &Moment,
    target: &Target,
) -> anyhow::Result<Option<ServerMemory>> {
    let Some(first) = &at_first.server else { return Ok(None) };
    let resident_bytes_open = open.server.as_ref().map_or(0, ServerState::resident_bytes);
    let memory = first.wait_for_return(target)?;
    Ok(memory.map(|memory| ServerMemory { resident_bytes_open, ..memory }))
}

/// What the kernel holds more; what else happens on the machine may hide it.
fn kernel_growth(first: &Moment, open: &Moment) -> Option<u64> {
    open.kernel?.checked_sub(first.kernel?).filter(|&grown| grown > 0)
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// Cores that the threads of the fleets can fill.
fn allowed_cores(common: &Common) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    cores.min(common.threads.into())
}

fn sleep_until_stopped(time: Duration, control: &Control) {
    let end = Instant::now() + time;
    while !control.stopped() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(LOOK));
    }
}

/// Stands where a feed was that has gone to its thread.
struct Nothing;

impl Feed for Nothing {
    fn channels(&self) -> &[String] {
        &[]
    }
    fn next(&mut self, _: &mut Vec<u8>) -> Option<(u32, u64)> {
        None
    }
    fn len(&self) -> Option<u64> {
        None
    }
}

fn bar(common: &Common, length: u64, what: &'static str) -> ProgressBar {
    if common.quiet {
        return ProgressBar::hidden();
    }
    let template =
        if length > 0 { "{prefix:>12} [{bar:30}] {pos}/{len} {msg}" } else { "{prefix:>12} {msg}" };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(length).with_style(style).with_prefix(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_key_and_the_token_are_in_no_report() {
        let all = [
            "--conns",
            "5",
            "--api-key",
            "secret",
            "--api-key=secret",
            "--publisher-token",
            "t",
            "-q",
        ];
        let shown = arguments(all.iter().map(|&argument| argument.to_owned()));
        assert_eq!(
            shown,
            ["--conns", "5", "--api-key", "***", "--api-key=***", "--publisher-token", "***", "-q"]
        );
    }
}
