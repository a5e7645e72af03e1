//! The connections to Redis: one for commands, and one over which is heard what is published.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline,
    ProtocolVersion, RedisError, RedisResult, ServerErrorKind, Value,
};

use super::foreign::Subscriptions;
use super::incoming::{Incoming, incoming};
use super::names::Names;
use super::script::{NO_OFFSETS, Scripts};

/// Scripts are called in a way, and pub/sub has guarantees, that earlier versions do not have.
const MAJOR_VERSION_MIN: u32 = 7;
/// Pipelines that wait for a connection to take them.
const PIPELINES_MAX: usize = 1024;

/// Why Redis cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// It does not answer, or refuses who asks.
    #[error("{}", describe(.0))]
    Redis(#[from] RedisError),
    /// It is too old.
    #[error("it is version {0}; needed is {MAJOR_VERSION_MIN} or newer")]
    Version(String),
    /// It is a copy.
    #[error("it is a replica, to which nothing can be written; redis.url must name the primary")]
    Replica,
    /// It is a part of a cluster.
    #[error("it is a node of a cluster, and redis.cluster is false")]
    Cluster,
    /// It has just been started.
    #[error("it is loading its data")]
    Loading,
}

/// What went wrong, in words that hold no more than Redis or the kernel has said.
pub(super) fn describe(error: &RedisError) -> String {
    match (error.kind(), error.is_timeout()) {
        (_, true) => "it does not answer (redis.timeout_ms)".into(),
        _ => error.to_string(),
    }
}

/// Both connections, as they were made.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) commands: MultiplexedConnection,
    pub(super) subscriber: MultiplexedConnection,
    pub(super) scripts: Scripts,
    /// What comes over the second.
    pub(super) incoming: Incoming,
    /// As Redis calls it.
    pub(super) version: String,
    /// It forgets something before it refuses to take more, and how it chooses.
    pub(super) evicts: Option<String>,
}

impl Link {
    /// Connects, looks whether this Redis can be used, and listens to what is said to all nodes.
    pub(super) async fn connect(
        info: ConnectionInfo,
        timeout: Duration,
        names: &Names,
        foreign: &Subscriptions,
    ) -> Result<Link, ConnectError> {
        let settings = info.redis_settings().clone();
        let settings = settings
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("ringfeed", env!("CARGO_PKG_VERSION"));
        let client = Client::open(info.set_redis_settings(settings))?;
        let (inlet, mut incoming) = incoming(names.ping());
        // Both: that either is gone is to be known at once.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_pipeline_buffer_size(PIPELINES_MAX)
            .set_push_sender(inlet);
        let mut commands = client.get_multiplexed_async_connection_with_config(&config).await?;
        let report: String = redis::cmd("INFO").query_async(&mut commands).await?;
        let version = check(&report)?;
        let scripts = Scripts::load().query_async::<[String; 3]>(&mut commands).await?;
        let mut subscriber = client.get_multiplexed_async_connection_with_config(&config).await?;
        let Subscriptions { names: channels, patterns } = foreign;
        if !channels.is_empty() {
            subscriber.subscribe(channels).await?;
        }
        if !patterns.is_empty() {
            subscriber.psubscribe(patterns).await?;
        }
        let own = [names.ping(), names.beats(), names.errands(), names.own_answers()];
        subscriber.subscribe(&own).await?;
        subscriber.psubscribe(names.shared_pattern()).await?;
        // Until all of it is subscribed to, what belongs together may have come in part.
        while incoming.take().is_some() {}
        let scripts = Scripts::loaded(scripts);
        let evicts = evicts(&report);
        Ok(Link { commands, subscriber, scripts, incoming, version, evicts })
    }
}

/// A line of what INFO says.
fn field<'a>(report: &'a str, name: &str) -> Option<&'a str> {
    report.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// Whether it can be used; its version.
fn check(report: &str) -> Result<String, ConnectError> {
    let version = field(report, "redis_version").unwrap_or("unknown");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < MAJOR_VERSION_MIN) {
        return Err(ConnectError::Version(version.to_owned()));
    }
    if field(report, "redis_mode") == Some("cluster") {
        return Err(ConnectError::Cluster);
    }
    if field(report, "loading") == Some("1") {
        return Err(ConnectError::Loading);
    }
    if field(report, "role") != Some("master") {
        return Err(ConnectError::Replica);
    }
    Ok(match field(report, "valkey_version") {
        Some(valkey) => format!("Valkey {valkey}"),
        None => format!("Redis {version}"),
    })
}

fn evicts(report: &str) -> Option<String> {
    let policy = field(report, "maxmemory_policy").filter(|policy| *policy != "noeviction");
    policy.filter(|_| field(report, "maxmemory") != Some("0")).map(str::to_owned)
}

/// Where it is, without who asks and with which password.
pub(super) fn address(info: &ConnectionInfo) -> String {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => format!("{host}:{port}"),
        ConnectionAddr::TcpTls { host, port, .. } => format!("{host}:{port} (TLS)"),
        ConnectionAddr::Unix(path) => path.display().to_string(),
        _ => "redis.url".into(),
    }
}

/// Asks several things at once; answers are in the same order. Scripts that the server has forgotten are loaded again.
pub(super) async fn ask(
    mut commands: MultiplexedConnection,
    mut asked: Pipeline,
) -> RedisResult<Vec<RedisResult<Value>>> {
    asked.ignore_errors();
    let mut answers: Vec<RedisResult<Value>> = asked.query_async(&mut commands).await?;
    let forgotten = |answer: &RedisResult<Value>| {
        let kind = answer.as_ref().err().map(RedisError::kind);
        kind == Some(ErrorKind::Server(ServerErrorKind::NoScript))
    };
    if answers.iter().any(forgotten) {
        Scripts::load().query_async::<[String; 3]>(&mut commands).await?;
        let again: Vec<bool> = answers.iter().map(forgotten).collect();
        let mut pipeline = Pipeline::new();
        for (cmd, _) in asked.cmd_iter().zip(&again).filter(|(_, again)| **again) {
            pipeline.add_command(Cmd::clone(cmd));
        }
        pipeline.ignore_errors();
        let later: Vec<RedisResult<Value>> = pipeline.query_async(&mut commands).await?;
        let places = answers.iter_mut().zip(&again).filter(|(_, again)| **again);
        places.zip(later).for_each(|((answer, _), later)| *answer = later);
    }
    Ok(answers)
}

/// Whether Redis refuses what it was asked now and always will.
pub(super) fn is_for_good(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.to_string().contains(NO_OFFSETS)
}

/// Whether what a command was answered means that this is not the place to ask any more, or not yet.
pub(super) fn is_elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind as Kind;
    match error.kind() {
        ErrorKind::Server(
            Kind::ReadOnly
            | Kind::BusyLoading
            | Kind::MasterDown
            | Kind::ClusterDown
            | Kind::TryAgain
            | Kind::Moved
            | Kind::Ask
            | Kind::NoScript,
        ) => true,
        ErrorKind::Server(_) => false,
        ErrorKind::Extension => error.code().is_some_and(|code| code == "BUSY"),
        // Not an answer of the server at all.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(version: &str, mode: &str, role: &str) -> String {
        format!(
            "# Server\r\nredis_version:{version}\r\nredis_mode:{mode}\r\nloading:0\r\nrole:{role}\r\n\
             maxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n"
        )
    }

    #[test]
    fn a_server_is_looked_at_before_it_is_used() {
        let check = |report: &str| check(report).map_err(|e| e.to_string());
        assert_eq!(check(&report("7.0.15", "standalone", "master")).unwrap(), "Redis 7.0.15");
        let valkey = report("7.2.4", "standalone", "master") + "valkey_version:8.1.0\r\n";
        assert_eq!(check(&valkey).unwrap(), "Valkey 8.1.0");
        for (report, why) in [
            (report("6.2.0", "standalone", "master"), "it is version 6.2.0; needed is 7 or newer"),
            (report("x", "standalone", "master"), "it is version x; needed is 7 or newer"),
            (String::new(), "it is version unknown; needed is 7 or newer"),
            (report("7.0.0", "cluster", "master"), "redis.cluster is false"),
            (report("7.0.0", "standalone", "slave"), "it is a replica"),
        ] {
            let refused = check(&report).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_server_that_forgets_is_told_of() {
        let report = report("7.0.15", "standalone", "master");
        assert_eq!(evicts(&report).unwrap(), "allkeys-lru");
        assert_eq!(evicts(&report.replace("maxmemory:100", "maxmemory:0")), None);
        assert_eq!(evicts(&report.replace("allkeys-lru", "noeviction")), None);
    }
}
