//! The command line: which seeds, on how many threads, and what is told of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::judge::{RULES, Rule};
use super::net::Sabotage;
use super::trace::Tracing;
use super::world::{Tally, World};

const HELP: &str = "\
usage: cargo test -p ringfeed-engine --test sim -- [options]

  --seed S       run this seed alone, and print its trace with --trace
  --seeds N      run N seeds, from a random one on or from --from
  --from S       the first of them
  --seconds T    run fresh seeds for so long (default 50)
  --threads N    default: one for each core
  --nodes        seeds of several nodes that share channels through a Redis, where not said otherwise by the test
  --mesh         the same without a Redis
  --trace        print everything that happens
  --keep-going   do not stop at the first failure; count failures by kind
  --only A,B     judge by these rules alone
  --without A,B  judge by all rules but these
  --rules        list the rules

The same from the environment: RINGFEED_SIM_SEED, RINGFEED_SIM_SEEDS, RINGFEED_SIM_SECONDS.
";

/// Whether it passed.
type Test = fn(&Options) -> bool;

/// Tests by name, as the test runner asks for them.
const TESTS: &[(&str, Test)] = &[
    ("fresh_seeds", |options| search(options, options.kind)),
    ("nodes_share_channels", |options| search(options, Kind::Redis)),
    ("nodes_share_channels_without_a_broker", |options| search(options, Kind::Mesh)),
    ("the_same_seed_is_the_same_run", same_seed),
    ("a_network_that_loses_or_repeats_is_noticed", sabotaged),
];

struct Options {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: Option<u64>,
    seconds: u64,
    threads: usize,
    trace: bool,
    keep_going: bool,
    rules: u64,
    kind: Kind,
}

/// What a seed is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One node.
    One,
    /// Several, with a Redis.
    Redis,
    /// Several, without.
    Mesh,
}

thread_local! {
    /// Where the last panic of this thread came from.
    static PANICKED: RefCell<String> = const { RefCell::new(String::new()) };
}

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--help") || has("-h") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    if has("--rules") {
        for (_, name, says) in RULES {
            println!("{name:<20} {says}");
        }
        return ExitCode::SUCCESS;
    }
    if has("--list") {
        for (name, _) in TESTS.iter().filter(|_| !has("--ignored")) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let (options, names) = match parse(&arguments) {
        Ok(parsed) => parsed,
        Err(problem) => {
            eprintln!("{problem}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    note_panics();
    if let Some(seed) = options.seed {
        return verdict(one(seed, &options));
    }
    let alone = arguments.iter().any(|a| a.starts_with("--se") || a == "--keep-going");
    let chosen = TESTS.iter().filter(|(name, _)| match names.as_slice() {
        [] => !alone || *name == "fresh_seeds",
        names => names.iter().any(|wanted| name.contains(wanted.as_str())),
    });
    let mut passed = true;
    for (name, test) in chosen {
        let good = test(&options);
        println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
        passed &= good;
    }
    verdict(passed)
}

fn verdict(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Options, and names of tests.
fn parse(arguments: &[String]) -> Result<(Options, Vec<String>), String> {
    let number = |name: &str, text: &str| {
        text.parse::<u64>().map_err(|_| format!("{name} {text}: allowed is a whole number"))
    };
    let environment = |name: &str| match std::env::var(name) {
        Ok(text) => number(name, &text).map(Some),
        Err(_) => Ok(None),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options {
        seed: environment("RINGFEED_SIM_SEED")?,
        seeds: environment("RINGFEED_SIM_SEEDS")?,
        from: None,
        seconds: environment("RINGFEED_SIM_SECONDS")?.unwrap_or(50),
        threads: cores,
        trace: false,
        keep_going: false,
        rules: u64::MAX,
        kind: Kind::One,
    };
    let mut names = Vec::new();
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        let mut value = || left.next().ok_or(format!("{argument}: a value is missing"));
        match argument.as_str() {
            "--seed" => options.seed = Some(number(argument, value()?)?),
            "--seeds" => options.seeds = Some(number(argument, value()?)?),
            "--from" => options.from = Some(number(argument, value()?)?),
            "--seconds" => options.seconds = number(argument, value()?)?,
            "--threads" => options.threads = number(argument, value()?)?.max(1) as usize,
            "--trace" => options.trace = true,
            "--nodes" => options.kind = Kind::Redis,
            "--mesh" => options.kind = Kind::Mesh,
            "--keep-going" => options.keep_going = true,
            "--only" => options.rules = mask(value()?)?,
            "--without" => options.rules &= !mask(value()?)?,
            // What test runners pass along.
            "--exact" | "--nocapture" | "--no-capture" | "--quiet" | "-q" => {}
            "--test-threads" | "--format" | "--color" => drop(value()?),
            name if !name.starts_with('-') => names.push(name.to_owned()),
            other => return Err(format!("{other}: no such option")),
        }
    }
    Ok((options, names))
}

/// Rules by name.
fn mask(names: &str) -> Result<u64, String> {
    names.split(',').filter(|name| !name.is_empty()).try_fold(0, |mask, wanted| {
        let found = RULES.iter().find(|(_, name, _)| *name == wanted);
        let (rule, ..): &(Rule, _, _) =
            found.ok_or_else(|| format!("{wanted}: no such rule; --rules lists them"))?;
        Ok(mask | 1 << *rule as u64)
    })
}

/// Panics are told with their seed, not as they come.
fn note_panics() {
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or(payload.downcast_ref::<String>().map(String::as_str));
        let message = message.unwrap_or("a panic").to_owned();
        let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
        let place = place.filter(|_| !message.starts_with("rule ")).unwrap_or_default();
        PANICKED.with(|panicked| *panicked.borrow_mut() = format!("{message}{place}"));
    }));
}

/// What a run was made of, and its trace. The error is what was wrong.
type Ran = Result<(Tally, Vec<String>), String>;

/// Runs a seed.
fn run(seed: u64, rules: u64, kind: Kind, tracing: Tracing) -> Ran {
    if kind == Kind::One {
        return run_with(seed, rules, tracing, None);
    }
    caught(|| {
        let mut world = super::nodes::World::new(seed, kind == Kind::Mesh, tracing);
        world.run();
        (world.tally(), world.trace())
    })
}

fn run_with(seed: u64, rules: u64, tracing: Tracing, sabotage: Option<Sabotage>) -> Ran {
    caught(|| {
        let mut world = World::new(seed, rules, tracing);
        if let Some(sabotage) = sabotage {
            world.sabotage(sabotage);
        }
        world.run();
        (world.tally(), world.trace())
    })
}

fn caught(run: impl FnOnce() -> (Tally, Vec<String>)) -> Ran {
    panic::catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| PANICKED.with(|panicked| panicked.borrow().clone()))
}

fn one(seed: u64, options: &Options) -> bool {
    let tracing = if options.trace { Tracing::Print } else { Tracing::Off };
    match run(seed, options.rules, options.kind, tracing) {
        Ok((tally, _)) => {
            println!("seed {seed} is clean: {}", shown(&tally));
            true
        }
        Err(what) => {
            println!("seed {seed} FAILED: {what}");
            false
        }
    }
}

fn same_seed(options: &Options) -> bool {
    let first = options.from.unwrap_or_else(rand::random);
    (first..first.saturating_add(48)).all(|seed| {
        let kind = [Kind::One, Kind::Redis, Kind::Mesh][(seed % 3) as usize];
        let runs = [(); 2].map(|()| run(seed, options.rules, kind, Tracing::Keep));
        let same = runs[0] == runs[1];
        if !same {
            println!("seed {seed} does not run the same way twice");
        }
        same
    })
}

/// The judge sees what a network does that must not be; not in every run, since in some hardly
/// anything is sent.
fn sabotaged(options: &Options) -> bool {
    use Sabotage::{LostByte, LostSend, Repeated, Untold};
    const SEEDS: u64 = 100;
    let first = options.from.unwrap_or_else(|| rand::random::<u64>() >> 16);
    [LostByte, LostSend, Repeated, Untold].into_iter().all(|sabotage| {
        let noticed = (first..first + SEEDS)
            .filter(|&seed| {
                let result = run_with(seed, options.rules, Tracing::Off, Some(sabotage));
                result.is_err_and(|what| what.starts_with("rule "))
            })
            .count();
        println!("{sabotage:?} is noticed under {noticed} of {SEEDS} seeds");
        noticed as u64 >= SEEDS / 4
    })
}

/// Fresh seeds on all cores.
fn search(options: &Options, kind: Kind) -> bool {
    let first = options.from.unwrap_or_else(|| rand::random::<u64>() >> 16);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    let time = Duration::from_secs(options.seconds);
    let worker = || {
        let mut tally = Tally::default();
        let mut failures: Vec<(u64, String)> = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let enough = match options.seeds {
                Some(seeds) => number >= seeds,
                None => began.elapsed() >= time,
            };
            if enough || stop.load(Ordering::Relaxed) {
                return (tally, failures);
            }
            let seed = first + number;
            match run(seed, options.rules, kind, Tracing::Off) {
                Ok((one, _)) => tally.add(&one),
                Err(what) => {
                    tally.seeds += 1;
                    failures.push((seed, what));
                    stop.store(!options.keep_going, Ordering::Relaxed);
                }
            }
        }
    };
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            let (one, mut failed) = worker.join().expect("a worker catches panics");
            tally.add(&one);
            failures.append(&mut failed);
        }
    });
    failures.sort();
    println!("from seed {first}, {:.1} s: {}", began.elapsed().as_secs_f64(), shown(&tally));
    report(&failures, first, options.rules, kind);
    failures.is_empty()
}

fn shown(tally: &Tally) -> String {
    let closes: Vec<String> =
        tally.closes.iter().map(|(code, count)| format!("{code}: {count}")).collect();
    format!(
        "{} seeds, {} turns, {} connections, {} publications, {} deliveries, {} gaps, {} faults, \
         {} handed over, closes {}",
        tally.seeds,
        tally.turns,
        tally.connections,
        tally.publications,
        tally.deliveries,
        tally.gaps,
        tally.faults,
        tally.handed_over,
        closes.join(", ")
    )
}

/// Characters of a failure that tell it from others.
const KIND_CHARS: usize = 64;

/// Failures by kind: how often, the first seed, what it said, and how to run it again.
fn report(failures: &[(u64, String)], first: u64, rules: u64, kind: Kind) {
    let on = |rule: &Rule| rules & (1 << *rule as u64) != 0;
    let only: Vec<&str> = RULES.iter().filter(|(r, ..)| on(r)).map(|rule| rule.1).collect();
    let flag = if only.len() == RULES.len() {
        String::new()
    } else {
        format!(" --only {}", only.join(","))
    };
    let flag = match kind {
        Kind::One => flag,
        Kind::Redis => format!("{flag} --nodes"),
        Kind::Mesh => format!("{flag} --mesh"),
    };
    let mut kinds: BTreeMap<String, Vec<&(u64, String)>> = BTreeMap::new();
    for failure in failures {
        let line = failure.1.lines().next().unwrap_or_default();
        // The same with other numbers is the same.
        let kind = line.chars().filter(|c| !c.is_ascii_digit()).take(KIND_CHARS).collect();
        kinds.entry(kind).or_default().push(failure);
    }
    let mut kinds: Vec<_> = kinds.into_values().collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.len()));
    for kind in kinds {
        let (seed, what) = kind[0];
        println!("\n{} times, after {} seeds: {what}", kind.len(), seed - first + 1);
        println!(
            "  again: cargo test -p ringfeed-engine --test sim -- --seed {seed} --trace{flag}"
        );
    }
}
