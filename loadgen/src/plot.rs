//! What is to be run: the command line turned into a feed and how to run it.

use std::time::Duration;

use anyhow::bail;

use crate::args::{Args, Common, Constant, Demo, DialectArg, Hold, Replay, Scenario, Traffic};
use crate::feed::{ConstantFeed, Feed, SimulatedFeed};
use crate::interest::Draws;
use crate::plans::drawing;
use crate::recording::{self, ReplayFeed};

/// A feed and how to run it.
pub(crate) struct Plot {
    pub(crate) name: String,
    pub(crate) common: Common,
    pub(crate) traffic: Traffic,
    pub(crate) dialect: DialectArg,
    pub(crate) feed: Box<dyn Feed>,
    pub(crate) until_ns: Option<u64>,
    /// Show rates as they are, not progress towards an end; it is ended by Ctrl-C.
    pub(crate) live: bool,
    /// Publish nothing, only hold the connections for so long.
    pub(crate) hold: Option<Duration>,
}

impl Plot {
    /// `None` where nothing is to be run.
    pub(crate) fn new(args: &Args) -> anyhow::Result<Option<Plot>> {
        Ok(Some(match &args.scenario {
            None => constant(&args.constant),
            Some(Scenario::Replay(args)) => replay(args)?,
            Some(Scenario::Demo(args)) => demo(args),
            Some(Scenario::Storm(args)) => held("connect storm", args, 0.0),
            Some(Scenario::Idle(args)) => held("idle", args, 30.0),
            Some(Scenario::Completions { .. }) => return Ok(None),
        }))
    }
}

fn constant(args: &Constant) -> Plot {
    let (common, traffic) = (args.common.clone(), args.traffic.clone());
    let names = (0..args.channels).map(|i| format!("{}c{i}", common.prefix)).collect();
    let interest = drawing(&traffic, args.channels, Draws::Publications);
    let (size, rate, burst) = (args.size, args.rate, args.burst);
    let feed = ConstantFeed::new(names, interest, size, rate, burst, args.duration);
    Plot {
        name: "constant rate".to_owned(),
        dialect: common.dialect.unwrap_or(DialectArg::Ringfeed),
        common,
        traffic,
        until_ns: (rate == 0).then(|| feed.until_ns()),
        feed: Box::new(feed),
        live: false,
        hold: None,
    }
}

fn replay(args: &Replay) -> anyhow::Result<Plot> {
    let (common, traffic) = (args.common.clone(), args.traffic.clone());
    let speed = args.speed;
    if !(0.0..=1e6).contains(&speed) {
        bail!("--speed {speed}: allowed are 0 to 1000000");
    }
    if args.max_pause.is_nan() || args.max_pause < 0.0 {
        bail!("--max-pause {}: allowed are seconds, or inf", args.max_pause);
    }
    if common.templates.are_used(&common.url) {
        bail!(
            "replay is for ringfeed: on other servers messages are recognised by their stamps, \
             which a recording has not; leave --subscribe-frame and {{channels}} away"
        );
    }
    let feed = ReplayFeed::load(
        &args.files,
        &recording::How {
            prefix: &common.prefix,
            speed,
            clones: args.clones,
            seconds: args.seconds,
            max_pause: args.max_pause,
            unit: args.time_unit,
        },
    )?;
    feed.announcements().iter().for_each(|line| eprintln!("loadgen: {line}"));
    let name = match speed {
        0.0 => "replay as fast as it goes".to_owned(),
        speed => format!("replay at x{speed}"),
    };
    Ok(Plot {
        name,
        dialect: common.dialect.unwrap_or(DialectArg::Both),
        common,
        traffic,
        feed: Box::new(feed),
        until_ns: None,
        live: false,
        hold: None,
    })
}

fn demo(args: &Demo) -> Plot {
    let (common, traffic) = (args.common.clone(), args.traffic.clone());
    let prefix = format!("{}sim.", common.prefix);
    let feed = SimulatedFeed::new(&prefix, args.instruments, args.rate, args.duration);
    Plot {
        name: "simulated feed".to_owned(),
        dialect: common.dialect.unwrap_or(DialectArg::Ringfeed),
        common,
        traffic,
        feed: Box::new(feed),
        until_ns: None,
        live: true,
        hold: None,
    }
}

/// Connections on which nothing is published.
fn held(name: &str, args: &Hold, seconds: f64) -> Plot {
    let common = args.common.clone();
    let traffic = Traffic::default();
    let channels = common.subscriptions.max(1);
    let names = (0..channels).map(|i| format!("{}c{i}", common.prefix)).collect();
    let interest = drawing(&traffic, channels, Draws::Publications);
    Plot {
        name: name.to_owned(),
        dialect: common.dialect.unwrap_or(DialectArg::Ringfeed),
        common,
        traffic,
        feed: Box::new(ConstantFeed::new(names, interest, 40, 1, 1, 0.0)),
        until_ns: None,
        live: false,
        hold: Some(Duration::from_secs_f64(args.duration.unwrap_or(seconds))),
    }
}
