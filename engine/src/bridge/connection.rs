//! The connections to Redis: to each server one for commands, and one over which is heard what is published.
//!
//! Of a cluster each master has both. What has to do with a numbered channel is asked of the master that has its slot, and its
//! publications come from there, as sharded pub/sub; all else goes through one of them, the **hub**, as if it were alone:
//! all nodes agree which one that is, so whoever publishes there is told how many have heard it. A master that is gone, or is
//! not the one to ask any more, ends all connections, and with the new ones comes the cluster as it is then. While a slot is on
//! its way its old master says of each command whether to ask the new one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline,
    ProtocolVersion, RedisError, RedisResult, ServerErrorKind, Value,
};
use ringfeed_protocol::ChannelName;

use super::command::Command;
use super::foreign::Subscriptions;
use super::incoming::{Incoming, Inlet, incoming};
use super::names::{HUB, Names};
use super::script::{self, Keep, NO_OFFSETS, Scripts};
use super::slots::{self, Map, MapError, Place, slot};
use crate::config::Config;

/// Scripts are called in a way, and pub/sub has guarantees, that earlier versions do not have.
const MAJOR_VERSION_MIN: u32 = 7;
/// Pipelines that wait for a connection to take them.
const PIPELINES_MAX: usize = 1024;
/// So many tags are tried until one leads to a given master: each slot has dozens among them.
const TAGS_MAX: u32 = 1 << 20;

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
    /// It is a copy, and the cluster does not know it yet.
    #[error("it is no master any more")]
    Demoted,
    /// It is a part of a cluster.
    #[error(
        "it is a node of a cluster, and redis.cluster is false: set it to true, or let redis.url name a single server"
    )]
    Cluster,
    /// It is not.
    #[error(
        "it is no node of a cluster, and redis.cluster is true: set it to false, or let redis.url name a node of a cluster"
    )]
    NoCluster,
    /// What it says of its cluster cannot be used.
    #[error("{0}")]
    Map(#[from] MapError),
    /// One of the masters of a cluster.
    #[error("{0}: {1}")]
    At(String, Box<ConnectError>),
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

/// A server: one, or a master of a cluster.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) commands: MultiplexedConnection,
    pub(super) subscriber: MultiplexedConnection,
    /// Where it is, of a cluster; of one server the log says so.
    address: Option<String>,
    ping: String,
    inlet: Inlet,
}

impl Server {
    fn is_sharded(&self) -> bool {
        self.address.is_some()
    }

    /// Why it is of no use any more.
    pub(super) fn why(&self, why: &str) -> String {
        match &self.address {
            Some(address) => format!("{address}: {why}"),
            None => why.to_owned(),
        }
    }

    /// Says something to this node itself. A master is asked for a key, too: it refuses that once it is none any more, or the
    /// cluster is down, and would still publish.
    pub(super) fn ping(&self) -> impl Future<Output = RedisResult<()>> + use<> {
        let mut pipeline = Pipeline::new();
        if self.is_sharded() {
            pipeline.cmd("GET").arg(&self.ping);
        }
        pipeline.cmd(self.publish()).arg(&self.ping).arg("");
        pipeline.ignore_errors();
        let mut commands = self.commands.clone();
        async move {
            let answers: Vec<RedisResult<Value>> = pipeline.query_async(&mut commands).await?;
            // It gives the slot away, and has it until then.
            let mut errors = answers.into_iter().filter_map(Result::err).filter(|e| !is_moving(e));
            errors.next().map_or(Ok(()), Err)
        }
    }

    /// The command that publishes on a numbered channel.
    pub(super) fn publish(&self) -> &'static str {
        if self.is_sharded() { "SPUBLISH" } else { "PUBLISH" }
    }

    /// Subscribes to numbered channels.
    pub(super) fn subscribe(
        &self,
        names: Vec<String>,
    ) -> impl Future<Output = RedisResult<()>> + use<> {
        let (mut subscriber, is_sharded) = (self.subscriber.clone(), self.is_sharded());
        async move {
            if !is_sharded {
                return subscriber.subscribe(names).await;
            }
            // One such command takes channels of one slot alone.
            let mut pipeline = Pipeline::new();
            for name in names {
                pipeline.cmd("SSUBSCRIBE").arg(name);
            }
            pipeline.exec_async(&mut subscriber).await
        }
    }

    /// Unsubscribes from one.
    pub(super) fn unsubscribe(
        &self,
        name: String,
    ) -> impl Future<Output = RedisResult<()>> + use<> {
        let (mut subscriber, is_sharded) = (self.subscriber.clone(), self.is_sharded());
        if is_sharded {
            self.inlet.leave();
        }
        async move {
            match is_sharded {
                true => redis::cmd("SUNSUBSCRIBE").arg(name).exec_async(&mut subscriber).await,
                false => subscriber.unsubscribe(name).await,
            }
        }
    }
}

/// All connections, as they were made.
#[derive(Debug)]
pub(super) struct Link {
    /// One; of a cluster, its masters.
    pub(super) servers: Vec<Server>,
    /// Where all nodes meet.
    pub(super) hub: usize,
    map: Option<Map>,
    pub(super) scripts: Scripts,
    /// What comes over the subscribers.
    pub(super) incoming: Incoming,
    /// As Redis calls it.
    pub(super) version: String,
    /// It forgets something before it refuses to take more, and how it chooses.
    pub(super) evicts: Option<String>,
}

impl Link {
    /// The server that has a channel.
    pub(super) fn server_of(&self, names: &Names, channel: &ChannelName) -> usize {
        self.map.as_ref().map_or(0, |map| map.master_of(names.slot(channel)))
    }

    /// The master that is to be asked what another one has refused, since the slot is on its way there; `None` where it is not
    /// known, or the other one is to be asked again.
    pub(super) fn moving_to(&self, at: usize, refused: &RedisError) -> Option<usize> {
        let masters = &self.map.as_ref()?.masters;
        let there = slots::elsewhere(refused, &masters.get(at)?.0)?;
        masters.iter().position(|own| *own == there)
    }

    /// How something is asked that is about keys; `None` of all else. `publish` is what an append publishes with.
    pub(super) fn about_keys(
        &self,
        names: &Names,
        config: &Config,
        publish: &'static str,
        command: &Command,
    ) -> Option<Cmd> {
        Some(match command {
            Command::Append(append) => {
                let keep = Keep::of(config, &append.channel);
                self.scripts.append(names, keep, publish, append)
            }
            Command::Read(read) => self.scripts.read(names, Keep::of(config, &read.channel), read),
            Command::Keep { kept, errand } => self.scripts.keep(names, kept, errand),
            Command::AllKept { from } => script::all_kept(names, *from),
            Command::Subscribe(_)
            | Command::Unsubscribe(_)
            | Command::Message(..)
            | Command::Share { .. } => return None,
        })
    }

    /// Other servers of a cluster, which can be asked where it is once the one that the configuration names is gone.
    pub(super) fn others(&self) -> Vec<Place> {
        self.map.as_ref().map(Map::some).unwrap_or_default()
    }
}

/// What is to be connected with, and how.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) info: ConnectionInfo,
    pub(super) is_cluster: bool,
    /// Servers of the cluster that were known before.
    pub(super) others: Arc<Vec<Place>>,
    pub(super) timeout: Duration,
    pub(super) names: Names,
    pub(super) foreign: Subscriptions,
}

impl Target {
    /// Connects, looks whether this Redis can be used, and listens to what is said to all nodes.
    pub(super) async fn connect(self) -> Result<Link, ConnectError> {
        if !self.is_cluster {
            let (mut inlets, incoming) = incoming(vec![self.names.ping()]);
            let inlet = inlets.pop().into_iter();
            let opened = try_join_all(inlet.map(|own| self.open(None, self.names.ping(), own)));
            return self.listen(opened.await?, None, 0, incoming).await;
        }
        let first = match self.connect_by(self.info.addr().clone()).await {
            Ok(link) => return Ok(link),
            Err(e) => e,
        };
        for other in &*self.others {
            if let Ok(link) = self.connect_by(at(self.info.addr(), other)).await {
                return Ok(link);
            }
        }
        Err(first)
    }

    /// Connects with all masters of a cluster, as one of its servers knows them.
    async fn connect_by(&self, addr: ConnectionAddr) -> Result<Link, ConnectError> {
        let asked = host(&addr).to_owned();
        let config = self.config();
        let client = self.client(addr)?;
        let mut server = client.get_multiplexed_async_connection_with_config(&config).await?;
        let report: String = redis::cmd("INFO").query_async(&mut server).await?;
        if field(&report, "redis_mode") != Some("cluster") {
            return Err(ConnectError::NoCluster);
        }
        let slots = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut server).await?;
        let map = Map::read(&slots, &asked)?;
        let pings = (0..map.masters.len()).map(|at| self.ping_at(&map, at));
        let pings = pings.collect::<Option<Vec<String>>>().ok_or(MapError::Unread)?;
        let (inlets, incoming) = incoming(pings.clone());
        let servers = map.masters.iter().zip(pings).zip(inlets);
        let opened = servers.map(|((place, ping), inlet)| async move {
            let opened = self.open(Some(place), ping, inlet).await;
            opened.map_err(|e| ConnectError::At(format!("{}:{}", place.0, place.1), Box::new(e)))
        });
        let opened = try_join_all(opened).await?;
        let [kept, _] = self.names.kept();
        let hub = map.master_of(slot(&kept));
        self.listen(opened, Some(map), hub, incoming).await
    }

    /// A channel that one of the masters serves; that where all nodes meet, as long as all nodes do.
    fn ping_at(&self, map: &Map, at: usize) -> Option<String> {
        let numbers = (0..TAGS_MAX).map(|number| number.to_string());
        let mut tags = std::iter::once(HUB.to_owned()).chain(numbers);
        let tag = tags.find(|tag| map.master_of(slot(tag)) == at)?;
        Some(self.names.ping_at(&tag))
    }

    fn client(&self, addr: ConnectionAddr) -> RedisResult<Client> {
        let settings = self.info.redis_settings().clone();
        let settings = settings
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("ringfeed", env!("CARGO_PKG_VERSION"));
        Client::open(self.info.clone().set_addr(addr).set_redis_settings(settings))
    }

    fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout))
            .set_pipeline_buffer_size(PIPELINES_MAX)
    }

    /// Makes both connections to a server, a master of a cluster or the only one, and looks whether it can be used.
    async fn open(
        &self,
        master: Option<&Place>,
        ping: String,
        inlet: Inlet,
    ) -> Result<(Server, String, [String; 3]), ConnectError> {
        let addr =
            master.map_or_else(|| self.info.addr().clone(), |place| at(self.info.addr(), place));
        let client = self.client(addr)?;
        // Both: that either is gone is to be known at once.
        let config = self.config().set_push_sender(inlet.clone());
        let mut commands = client.get_multiplexed_async_connection_with_config(&config).await?;
        let report: String = redis::cmd("INFO").query_async(&mut commands).await?;
        check(&report, master.is_some())?;
        let scripts = Scripts::load().query_async::<[String; 3]>(&mut commands).await?;
        let subscriber = client.get_multiplexed_async_connection_with_config(&config).await?;
        let address = master.map(|(host, port)| format!("{host}:{port}"));
        let server = Server { commands, subscriber, address, ping, inlet };
        server.subscribe(vec![server.ping.clone()]).await?;
        server.ping().await?;
        Ok((server, report, scripts))
    }

    /// Listens to what nodes say to one another, and other programs to them.
    async fn listen(
        &self,
        opened: Vec<(Server, String, [String; 3])>,
        map: Option<Map>,
        hub: usize,
        mut incoming: Incoming,
    ) -> Result<Link, ConnectError> {
        let (mut servers, mut evicted) = (Vec::new(), None);
        let (mut known, mut version) = (None, String::new());
        for (server, report, scripts) in opened {
            servers.push(server);
            evicted = evicted.or_else(|| evicts(&report));
            version = name(&report);
            known = Some(scripts);
        }
        let (Some(scripts), Some(server)) = (known, servers.get_mut(hub)) else {
            return Err(MapError::Unread.into());
        };
        let subscriber = &mut server.subscriber;
        let Subscriptions { names: channels, patterns } = &self.foreign;
        if !channels.is_empty() {
            subscriber.subscribe(channels).await?;
        }
        if !patterns.is_empty() {
            subscriber.psubscribe(patterns).await?;
        }
        let names = &self.names;
        subscriber.subscribe(names.beats()).await?;
        subscriber.psubscribe(names.shared_pattern()).await?;
        // Until all of it is subscribed to, what belongs together may have come in part.
        while incoming.take().is_some() {}
        incoming.begin();
        // Who asks something counts this node from here on, and waits for its answer: nothing of it is left out.
        subscriber.subscribe(&[names.errands(), names.own_answers()]).await?;
        let scripts = Scripts::loaded(scripts);
        Ok(Link { servers, hub, map, scripts, incoming, version, evicts: evicted })
    }
}

/// A line of what INFO says.
fn field<'a>(report: &'a str, name: &str) -> Option<&'a str> {
    report.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// What it is, and its version.
fn name(report: &str) -> String {
    match field(report, "valkey_version") {
        Some(valkey) => format!("Valkey {valkey}"),
        None => format!("Redis {}", field(report, "redis_version").unwrap_or("unknown")),
    }
}

/// Whether it can be used, as a master of a cluster or by itself.
fn check(report: &str, as_master: bool) -> Result<(), ConnectError> {
    let version = field(report, "redis_version").unwrap_or("unknown");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < MAJOR_VERSION_MIN) {
        return Err(ConnectError::Version(version.to_owned()));
    }
    match (field(report, "redis_mode") == Some("cluster"), as_master) {
        (true, false) => return Err(ConnectError::Cluster),
        (false, true) => return Err(ConnectError::NoCluster),
        _ => {}
    }
    if field(report, "loading") == Some("1") {
        return Err(ConnectError::Loading);
    }
    match (field(report, "role") == Some("master"), as_master) {
        (true, _) => Ok(()),
        (false, false) => Err(ConnectError::Replica),
        (false, true) => Err(ConnectError::Demoted),
    }
}

fn evicts(report: &str) -> Option<String> {
    let policy = field(report, "maxmemory_policy").filter(|policy| *policy != "noeviction");
    policy.filter(|_| field(report, "maxmemory") != Some("0")).map(str::to_owned)
}

/// The host of a server; empty where it has none.
pub(super) fn host(addr: &ConnectionAddr) -> &str {
    match addr {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        _ => "",
    }
}

/// Another server of the cluster that one of this address is a part of.
pub(super) fn at(one: &ConnectionAddr, (host, port): &Place) -> ConnectionAddr {
    let (host, port) = (host.clone(), *port);
    match one.clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
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

/// Asks a server one thing; `asking` says that it is of a slot that is on its way there.
pub(super) async fn ask_one(
    commands: MultiplexedConnection,
    cmd: Cmd,
    asking: bool,
) -> RedisResult<RedisResult<Value>> {
    let mut pipeline = Pipeline::new();
    if asking {
        pipeline.cmd("ASKING");
    }
    pipeline.add_command(cmd);
    let answers = ask(commands, pipeline).await?;
    // Where that is refused, so is all of it.
    Ok(answers.into_iter().reduce(|before, answer| before.and(answer)).unwrap_or(Ok(Value::Nil)))
}

/// Whether a command was refused, and not done, since its slot is on the move.
pub(super) fn is_moving(error: &RedisError) -> bool {
    use ServerErrorKind as Kind;
    matches!(error.kind(), ErrorKind::Server(Kind::Ask | Kind::TryAgain))
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
            | Kind::Moved
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
        let single = report("7.0.15", "standalone", "master");
        assert!(check(&single, false).is_ok());
        assert_eq!(name(&single), "Redis 7.0.15");
        assert_eq!(name(&(single.clone() + "valkey_version:8.1.0\r\n")), "Valkey 8.1.0");
        let master = report("7.0.15", "cluster", "master");
        assert!(check(&master, true).is_ok());
        for (report, as_master, why) in [
            (report("6.2.0", "standalone", "master"), false, "it is version 6.2.0; needed is 7"),
            (report("x", "standalone", "master"), false, "it is version x; needed is 7 or newer"),
            (String::new(), false, "it is version unknown; needed is 7 or newer"),
            (master, false, "redis.cluster is false"),
            (single, true, "redis.cluster is true"),
            (report("7.0.0", "standalone", "slave"), false, "it is a replica"),
            (report("7.0.0", "cluster", "slave"), true, "it is no master any more"),
        ] {
            let refused = check(&report, as_master).unwrap_err().to_string();
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
