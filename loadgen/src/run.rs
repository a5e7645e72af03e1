//! One run from start to end: open, subscribe, publish, wait, report.

mod crew;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use ringfeed_wire::process_cpu_time;

use crate::args::{Args, Common, DialectArg, Hold, InterestArg, Scenario};
use crate::feed::{ConstantFeed, Feed, SimulatedFeed};
use crate::fleet::{Plan, Speech};
use crate::interest::{Draws, Interest};
use crate::machine::{check_limits, choose_io, kernel_bytes};
use crate::publisher::{Published, Publisher};
use crate::recording::ReplayFeed;
use crate::report::{LoadgenCost, Report, ServerMemory};
use crate::server::ServerState;
use crate::target::Target;
use crew::Crew;

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Seconds without progress after which a run with churn is over: what is due to whom changes.
const CHURN_GRACE: f64 = 1.0;
/// Time without one after which subscriptions that cannot be acknowledged are asked for a sign of
/// life.
const WARM_UP_EVERY: Duration = Duration::from_millis(300);

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Running = 0,
    Stop = 1,
}

/// What all threads of a run share.
#[derive(Debug)]
pub(crate) struct Control {
    start: Instant,
    phase: AtomicU8,
    stopped: AtomicBool,
    publishing: AtomicBool,
    /// When latencies begin to count, on the run's clock.
    pub(crate) counts_from_ns: AtomicU64,
    /// Messages handed to the server, warm-up included.
    pub(crate) published: AtomicU64,
}

impl Control {
    fn new() -> Control {
        Control {
            start: Instant::now(),
            phase: AtomicU8::new(Phase::Running as u8),
            stopped: AtomicBool::new(false),
            publishing: AtomicBool::new(false),
            counts_from_ns: AtomicU64::new(0),
            published: AtomicU64::new(0),
        }
    }

    /// The run's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.phase.load(Ordering::Acquire) == Phase::Stop as u8 {
            Phase::Stop
        } else {
            Phase::Running
        }
    }

    /// Whether that which is measured is being published.
    pub(crate) fn is_publishing(&self) -> bool {
        self.publishing.load(Ordering::Relaxed)
    }

    /// Whether Ctrl-C was pressed or a thread has failed: publish no more.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// A feed and how to run it.
struct Plot {
    name: String,
    common: Common,
    dialect: DialectArg,
    feed: Box<dyn Feed>,
    until_ns: Option<u64>,
    /// Show rates as they are, not progress towards an end.
    live: bool,
    /// Publish nothing, only hold the connections for so long.
    hold: Option<Duration>,
}

/// Runs what was asked for. `false` if something was lost.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let plot = match &args.scenario {
        None => {
            let constant = &args.constant;
            let common = constant.common.clone();
            let names = (0..constant.channels).map(|i| format!("{}c{i}", common.prefix)).collect();
            let (size, rate, burst) = (constant.size, constant.rate, constant.burst);
            let interest = drawing(&common, constant.channels, Draws::Publications);
            let feed = ConstantFeed::new(names, interest, size, rate, burst, constant.duration);
            let until_ns = (rate == 0).then(|| feed.until_ns());
            let dialect = common.dialect.unwrap_or(DialectArg::Ringfeed);
            let name = "constant rate".to_owned();
            Plot { name, common, dialect, feed: Box::new(feed), until_ns, live: false, hold: None }
        }
        Some(Scenario::Replay(replay)) => {
            let common = replay.common.clone();
            let (speed, clones) = (replay.speed, replay.clones);
            if !(0.0..=1e6).contains(&speed) {
                bail!("--speed {speed}: allowed are 0 to 1000000");
            }
            let feed =
                ReplayFeed::load(&replay.files, &common.prefix, speed, clones, replay.seconds)?;
            let name = match speed {
                0.0 => "replay as fast as it goes".to_owned(),
                speed => format!("replay at x{speed}"),
            };
            let dialect = common.dialect.unwrap_or(DialectArg::Both);
            Plot {
                name,
                common,
                dialect,
                feed: Box::new(feed),
                until_ns: None,
                live: false,
                hold: None,
            }
        }
        Some(Scenario::Demo(demo)) => {
            let common = demo.common.clone();
            let prefix = format!("{}sim.", common.prefix);
            let feed = SimulatedFeed::new(&prefix, demo.instruments, demo.rate, demo.duration);
            let dialect = common.dialect.unwrap_or(DialectArg::Ringfeed);
            let name = "simulated feed".to_owned();
            Plot {
                name,
                common,
                dialect,
                feed: Box::new(feed),
                until_ns: None,
                live: true,
                hold: None,
            }
        }
        Some(Scenario::Storm(hold)) => held("connect storm", hold, 0.0),
        Some(Scenario::Idle(hold)) => held("idle", hold, 30.0),
    };
    play(plot)
}

/// Connections on which nothing is published.
fn held(name: &str, args: &Hold, seconds: f64) -> Plot {
    let common = args.common.clone();
    let channels = common.subscriptions.max(1);
    let names = (0..channels).map(|i| format!("{}c{i}", common.prefix)).collect();
    let interest = drawing(&common, channels, Draws::Publications);
    let hold = Duration::try_from_secs_f64(args.duration.unwrap_or(seconds)).unwrap_or_default();
    Plot {
        name: name.to_owned(),
        dialect: common.dialect.unwrap_or(DialectArg::Ringfeed),
        common,
        feed: Box::new(ConstantFeed::new(names, interest, 40, 1, 1, 0.0)),
        until_ns: None,
        live: false,
        hold: Some(hold),
    }
}

fn play(mut plot: Plot) -> anyhow::Result<bool> {
    let common = plot.common.clone();
    let target = Target::new(&common)?;
    let io = choose_io(common.io)?;
    check_limits(&common, &target, io)?;
    let control = Arc::new(Control::new());
    let stop = control.clone();
    // A second Ctrl-C ends the process at once.
    ctrlc::set_handler(move || {
        if stop.stopped.swap(true, Ordering::AcqRel) {
            std::process::exit(130);
        }
    })?;

    let channels = Arc::new(plot.feed.channels().to_vec());
    let plans = plans(&common, plot.dialect, channels.len() as u32);
    let subscriptions: u64 = plans.iter().map(|plan| plan.channels.len() as u64).sum();
    let needs_warm_up = plans.iter().any(|plan| plan.speech != Speech::Ringfeed);
    if common.churn > 0.0 && needs_warm_up {
        bail!("--churn needs --dialect ringfeed: others are not told from where on they receive");
    }
    let server_at_first = ServerState::fetch(&target)?;
    let kernel_at_first = kernel_bytes();

    let mut crew = Crew::muster(&common, &target, plans, &channels, &control, io)?;
    let progress = |length: u64, what: &'static str| bar(&common, length, what);

    let opening = progress(common.conns.into(), "opening");
    let begun = Instant::now();
    crew.wait_until(
        &control,
        &opening,
        common.grace,
        |p| &p.opened,
        common.conns.into(),
        |_| Ok(()),
    )?;
    let opening_seconds = begun.elapsed().as_secs_f64();
    opening.finish_and_clear();

    let mut publisher = match plot.hold {
        Some(_) if !needs_warm_up => None,
        _ => Some(Publisher::connect(
            &target,
            common.publish,
            channels.to_vec(),
            crew.fleet_senders(),
            control.clone(),
            crew.audience(channels.len()),
        )?),
    };
    let subscribing = progress(subscriptions, "subscribing");
    let all: Vec<u32> = (0..channels.len() as u32).collect();
    let (mut round, mut stood, mut warmed) = (0, 0, None::<Instant>);
    crew.wait_until(
        &control,
        &subscribing,
        common.grace,
        |p| &p.standing,
        subscriptions,
        |standing| {
            if standing > stood {
                // It is under way: more would only be in the way.
                (stood, warmed) = (standing, Some(Instant::now()));
            }
            if needs_warm_up
                && let Some(publisher) = &mut publisher
                && warmed.is_none_or(|at| at.elapsed() > WARM_UP_EVERY)
            {
                warmed = Some(Instant::now());
                round += 1;
                publisher.warm_up(&all, round)?;
            }
            Ok(())
        },
    )?;
    let subscribing_seconds = begun.elapsed().as_secs_f64() - opening_seconds;
    subscribing.finish_and_clear();

    let server_before = ServerState::fetch(&target)?;
    let kernel_open = kernel_bytes();
    let cpu_before = process_cpu_time();
    let started = Instant::now();
    let (length, live) = (plot.feed.len(), plot.live);
    let published_before = control.published.load(Ordering::Relaxed);
    let feed = std::mem::replace(&mut plot.feed, Box::new(Nothing));
    let publishing_control = control.clone();
    let (until_ns, hold) = (plot.until_ns, plot.hold);
    let settle = Duration::try_from_secs_f64(common.settle).unwrap_or_default();
    let counts_from_ns = control.now_ns() + settle.as_nanos() as u64;
    control.counts_from_ns.store(counts_from_ns, Ordering::Relaxed);
    control.publishing.store(true, Ordering::Relaxed);
    let publishing = std::thread::Builder::new().name("publisher".into()).spawn(move || {
        let mut feed = feed;
        let mut published = Published::default();
        if let Some(hold) = hold {
            sleep_until_stopped(hold, &publishing_control);
        }
        if let Some(mut publisher) = publisher {
            published = publisher.run(&mut *feed, until_ns)?;
            publisher.finish()?;
        }
        anyhow::Ok(published)
    })?;
    let shown = progress(length.unwrap_or(0), "publishing");
    let published = crew.watch(&control, &shown, live, published_before, publishing)?;
    control.publishing.store(false, Ordering::Relaxed);
    let grace = if common.churn > 0.0 { CHURN_GRACE } else { common.grace };
    let last = crew.wait_for_all(&control, &shown, &published, grace)?;
    shown.finish_and_clear();
    let delivering_seconds = last.duration_since(started).as_secs_f64();
    let (cpu_after, wall) = (process_cpu_time(), started.elapsed());
    let server_after = ServerState::fetch(&target)?;

    let bytes_received = crew.total(|p| &p.bytes);
    let closing = Instant::now();
    let findings = crew.dismiss(&control)?;
    let closing_seconds = closing.elapsed().as_secs_f64();
    let server_memory = match &server_at_first {
        Some(first) => first.wait_for_return(&target)?.map(|memory| ServerMemory {
            resident_bytes_open: server_before.as_ref().map_or(0, ServerState::resident_bytes),
            ..memory
        }),
        None => None,
    };
    let kernel_bytes_per_connection = kernel_at_first
        .zip(kernel_open)
        .map(|(first, open)| (open as f64 - first as f64) / f64::from(common.conns));
    let cpu = (cpu_after.0 - cpu_before.0, cpu_after.1 - cpu_before.1);
    let report = Report {
        scenario: plot.name,
        url: common.url.clone(),
        connections: common.conns,
        subscriptions,
        channels: channels.len(),
        published: published.messages,
        published_per_second: per_second(published.messages, published.seconds),
        tally: findings.tally,
        delivered_per_second: per_second(findings.tally.delivered, delivering_seconds),
        bytes_received,
        latency_us: findings.latency.latency(),
        opening_seconds,
        subscribing_seconds,
        publishing_seconds: published.seconds,
        delivering_seconds,
        publisher_late_max_us: published.late_max_ns as f64 / 1000.0,
        loadgen: LoadgenCost {
            cpu_user_seconds: cpu.0.as_secs_f64(),
            cpu_system_seconds: cpu.1.as_secs_f64(),
            cores: (cpu.0 + cpu.1).as_secs_f64() / wall.as_secs_f64(),
            cores_allowed: allowed_cores(&common),
        },
        server: server_before
            .zip(server_after)
            .map(|(before, after)| before.cost(&after, findings.tally.delivered)),
        server_memory,
        kernel_bytes_per_connection,
        closing_seconds,
        stalled: common.stalled.min(common.conns),
        io: io.to_string(),
        first_problem: findings.first_problem,
    };
    print!("{}", report.text());
    if let Some(path) = &common.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(report.tally.is_clean())
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

/// What this run draws channels with.
fn drawing(common: &Common, channels: u32, draws: Draws) -> Interest {
    Interest::new(common.interest, common.seed, channels, draws)
}

/// Which connection speaks what and subscribes to which channels. Where both dialects are wanted,
/// half of the connections speak each, and blocks are dealt out in both alike.
fn plans(common: &Common, dialect: DialectArg, channels: u32) -> Vec<Plan> {
    let each = match common.subscriptions {
        0 => channels,
        some => some.min(channels),
    };
    let mut interest = drawing(common, channels, Draws::Subscriptions);
    let mut before = Vec::new();
    (0..common.conns)
        .map(|number| {
            let speech = match dialect {
                _ if common.templates.are_used(&common.url) => Speech::Templates,
                DialectArg::Ringfeed => Speech::Ringfeed,
                DialectArg::Raw => Speech::Raw,
                DialectArg::Both if number % 2 == 0 => Speech::Ringfeed,
                DialectArg::Both => Speech::Raw,
            };
            let pairs = dialect == DialectArg::Both && common.interest == InterestArg::Blocks;
            if !pairs || number % 2 == 0 {
                before = interest.channels(each);
            }
            let stalled = number < common.stalled;
            Plan { speech, channels: before.clone(), number, stalled }
        })
        .collect()
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
