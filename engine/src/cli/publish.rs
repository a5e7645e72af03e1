//! `ringfeed publish`: one message, by the first of several ways that takes it.
//!
//! The API comes first. What it refuses is refused. Where it cannot be reached, or its word does not come, the next way is
//! tried; the message has an idempotency key that goes all ways with it, so that it is published once if the first had taken it.

use std::env::VarError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use redis::ConnectionInfo;
use ringfeed_engine::bridge::queue::{self, LeaveError};
use ringfeed_engine::config::{check_redis_prefix, redis_connection};
use ringfeed_protocol::{ChannelName, IdempotencyKey};
use serde_json::json;

use super::output::say;

/// Longest API key.
const API_KEY_BYTES_MAX: u64 = 4096;
/// Longest answer that is read from an HTTP API.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Where the URL of Redis is that does not stand among the arguments.
const REDIS_VARIABLE: &str = "RINGFEED_REDIS_URL";
/// How long to wait for a connection, and then for each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Mode of a dropped file: a server that runs as another user may read it where the directory hands its group down (`chmod g+s`).
const DROP_MODE: u32 = 0o640;

const AFTER_HELP: &str = "\
Ways are tried in this order: the API, Redis, a directory. Prints what became of it, with `ack`: accepted, it is in its channel's
log; redis, Redis has it there; queued, it waits in Redis, and a server with that redis.url and redis.prefix publishes it; spooled,
it is in a file, and a server whose drop.dir that directory is publishes it, or on the disk of the server, which does once it
reaches Redis.

Exit status: 0 published, queued or spooled; 1 refused, or nothing took it; 2 this command line is wrong.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct PublishArgs {
    /// The channel.
    channel: String,
    /// The payload: JSON, or text if it is not JSON. `-` reads it from standard input.
    #[arg(allow_negative_numbers = true)]
    data: String,
    /// Publish as text even if it is JSON.
    #[arg(long)]
    text: bool,
    /// Where the HTTP API is: HOST:PORT or http://HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:9801", value_name = "ADDRESS", value_parser = authority)]
    api: String,
    /// File with the API key. Without it the key is what RINGFEED_API_KEY in the environment holds.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Idempotency key: what is published again with the same one, to the same channel and in time, is published once. Without it
    /// one is made where it is needed.
    #[arg(long, value_name = "KEY", value_parser = idempotency_key)]
    key: Option<IdempotencyKey>,
    /// Redis to leave the message in where the API cannot be reached, or answers 5xx: redis://HOST:PORT/DATABASE, rediss:// for TLS, or
    /// unix:///PATH. Without it what RINGFEED_REDIS_URL in the environment holds, where also a password may stand.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// redis.prefix of the servers.
    #[arg(long, value_name = "PREFIX", default_value = "ringfeed", value_parser = redis_prefix)]
    redis_prefix: String,
    /// Directory to leave the message in where the API answers 5xx or cannot be reached, nor Redis. Without it what RINGFEED_DROP_DIR
    /// in the environment holds.
    #[arg(long, value_name = "DIR")]
    drop: Option<PathBuf>,
}

/// `HOST:PORT` of an address or a URL.
fn authority(api: &str) -> Result<String, String> {
    let rest = match api.split_once("://") {
        None => api,
        Some(("http", rest)) => rest,
        Some(_) => return Err("only http:// is spoken; for another, put curl in its place".into()),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, ""));
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if host.is_empty() || !host.chars().all(fits) || port.parse::<u16>().is_err() {
        return Err("allowed are HOST:PORT and http://HOST:PORT, as in localhost:9801".into());
    }
    Ok(rest.to_owned())
}

fn idempotency_key(key: &str) -> Result<IdempotencyKey, String> {
    IdempotencyKey::new(key).map_err(|e| e.to_string())
}

fn redis_prefix(prefix: &str) -> Result<String, String> {
    check_redis_prefix(prefix).map(|()| prefix.to_owned())
}

/// A way to publish.
#[derive(Debug)]
enum Way {
    Api { address: String, key: String },
    Redis { info: Box<ConnectionInfo>, prefix: String },
    File { directory: PathBuf },
}

/// Why a way did not take a message.
#[derive(Debug)]
enum NotTaken {
    /// No other way would.
    Refused(anyhow::Error),
    /// It could not be asked, or its answer did not come.
    NotReached(anyhow::Error),
}

/// What is published.
#[derive(Debug)]
struct Message {
    channel: String,
    /// The name of the field and JSON.
    payload: (&'static str, String),
    key: Option<IdempotencyKey>,
}

/// Runs the command.
pub(super) fn run(args: &PublishArgs) -> anyhow::Result<()> {
    let ways = ways(args)?;
    let message = message(args, ways.len() > 1)?;
    let mut tried: Option<anyhow::Error> = None;
    for way in &ways {
        match way.publish(&message) {
            Ok(told) => return say(&told),
            Err(NotTaken::Refused(why)) => return Err(why),
            Err(NotTaken::NotReached(why)) => {
                tried = Some(match tried {
                    None => why,
                    Some(before) => anyhow!("{before:#}; and {why:#}"),
                });
            }
        }
    }
    Err(tried.unwrap_or_else(|| anyhow!("there is no way to publish")))
}

/// The ways there are, in the order in which they are tried.
fn ways(args: &PublishArgs) -> anyhow::Result<Vec<Way>> {
    let key = api_key(args.api_key_file.as_deref())?;
    let mut ways = vec![Way::Api { address: args.api.clone(), key }];
    if let Some(info) = redis_info(args.redis.as_deref())? {
        ways.push(Way::Redis { info: Box::new(info), prefix: args.redis_prefix.clone() });
    }
    let directory =
        args.drop.clone().or_else(|| std::env::var_os("RINGFEED_DROP_DIR").map(PathBuf::from));
    if let Some(directory) = directory.filter(|own| !own.as_os_str().is_empty()) {
        ways.push(Way::File { directory });
    }
    Ok(ways)
}

/// Where Redis is, if there is one.
fn redis_info(argument: Option<&str>) -> anyhow::Result<Option<ConnectionInfo>> {
    if let Some(url) = argument {
        let info = redis_connection(url.as_bytes()).map_err(|why| anyhow!("--redis: {why}"))?;
        if info.redis_settings().password().is_some() {
            bail!(
                "--redis: it holds a password, which everybody on this machine can read there; {REDIS_VARIABLE} in the environment \
                 may hold one"
            );
        }
        return Ok(Some(info));
    }
    let url = std::env::var_os(REDIS_VARIABLE).unwrap_or_default();
    if url.is_empty() {
        return Ok(None);
    }
    let info = redis_connection(url.as_bytes()).map_err(|why| anyhow!("{REDIS_VARIABLE}: {why}"));
    info.map(Some)
}

fn message(args: &PublishArgs, may_be_sent_again: bool) -> anyhow::Result<Message> {
    let mut data = args.data.clone();
    if data == "-" {
        data.clear();
        io::stdin().read_to_string(&mut data).context("reading standard input")?;
    }
    let payload = match serde_json::from_str::<&serde_json::value::RawValue>(&data) {
        Ok(json) if !args.text => ("data", json.get().to_owned()),
        _ => ("text", serde_json::to_string(&data)?),
    };
    let key = match &args.key {
        Some(key) => Some(key.clone()),
        None if may_be_sent_again => {
            Some(IdempotencyKey::new(&format!("{:032x}", rand::random::<u128>()))?)
        }
        None => None,
    };
    Ok(Message { channel: args.channel.clone(), payload, key })
}

impl Message {
    /// The body of a publication, with some more fields.
    fn body(&self, more: &str) -> anyhow::Result<String> {
        let (field, payload) = &self.payload;
        let channel = serde_json::to_string(&self.channel)?;
        let key = match &self.key {
            Some(key) => format!(",\"idempotency_key\":{}", serde_json::to_string(key.as_str())?),
            None => String::new(),
        };
        Ok(format!("{{\"channel\":{channel},\"{field}\":{payload}{key}{more}}}"))
    }

    /// The same, as it is left for later.
    fn left(&self, now: Duration) -> anyhow::Result<String> {
        // Nobody would be told of it later.
        ChannelName::new(&self.channel)?;
        self.body(&format!(",\"created_ms\":{}", now.as_millis()))
    }

    /// What is printed once it was left, and where that is.
    fn taken(&self, ack: &str, (at, place): (&str, &str)) -> String {
        let (channel, key) = (&self.channel, self.key.as_ref().map(IdempotencyKey::as_str));
        json!({"channel": channel, "idempotency_key": key, "ack": ack, at: place}).to_string()
    }
}

impl Way {
    /// What it says to a message that it has taken.
    fn publish(&self, message: &Message) -> Result<String, NotTaken> {
        match self {
            Way::Api { address, key } => ask(address, key, message),
            Way::Redis { info, prefix } => {
                enqueue(info, prefix, message).map_err(|e| NotTaken::NotReached(e.context("Redis")))
            }
            Way::File { directory } => leave(directory, message).map_err(|e| {
                NotTaken::NotReached(e.context(format!("--drop {}", directory.display())))
            }),
        }
    }
}

/// One request, one answer: not worth an HTTP client library on the server's side.
fn ask(api: &str, api_key: &str, message: &Message) -> Result<String, NotTaken> {
    let authorization = match api_key {
        "" => String::new(),
        key => format!("Authorization: Bearer {key}\r\n"),
    };
    let body = message.body("").map_err(NotTaken::Refused)?;
    let request = format!(
        "POST /api/publish HTTP/1.1\r\nHost: {api}\r\nContent-Type: application/json\r\n\
         {authorization}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = exchange(api, &request, &body).map_err(NotTaken::NotReached)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(NotTaken::NotReached(anyhow!("the answer of http://{api} is not HTTP")));
    };
    let (status_line, body) = (head.lines().next().unwrap_or_default(), body.trim_end());
    match status_line.split(' ').nth(1) {
        Some("200" | "202") => Ok(body.to_owned()),
        // It, or who stands in front of it, is not there at present, or could not find out.
        Some(status) if status.starts_with('5') => {
            Err(NotTaken::NotReached(anyhow!("{status_line}: {body}")))
        }
        _ => Err(NotTaken::Refused(anyhow!("{status_line}: {body}"))),
    }
}

fn exchange(api: &str, head: &str, body: &str) -> anyhow::Result<String> {
    let mut stream = connect(api).with_context(|| format!("no server answers at http://{api}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(head.as_bytes()).context("sending the request")?;
    // A server that refuses the body may close before it has read all of it; its answer says why.
    let sent = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if !answer.contains("\r\n\r\n") {
        sent.context("sending the request")?;
        read.context("reading the answer")?;
    }
    Ok(answer)
}

/// Connects to the first address of a name that answers.
fn connect(api: &str) -> anyhow::Result<TcpStream> {
    let mut failed = anyhow!("this name has no address");
    for address in api.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(e) => failed = e.into(),
        }
    }
    Err(failed)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Leaves a message in the queue in Redis.
fn enqueue(info: &ConnectionInfo, prefix: &str, message: &Message) -> anyhow::Result<String> {
    let left = message.left(since_1970())?;
    let leave = |info: &ConnectionInfo| {
        let mut redis = redis::Client::open(info.clone())?.get_connection_with_timeout(TIMEOUT)?;
        redis.set_read_timeout(Some(TIMEOUT))?;
        redis.set_write_timeout(Some(TIMEOUT))?;
        queue::leave(&mut redis, prefix, &left)
    };
    let id = match leave(info) {
        Err(LeaveError::Redis(e)) => match queue::elsewhere(info, &e) {
            Some(info) => leave(&info),
            None => Err(e.into()),
        },
        told => told,
    }?;
    Ok(message.taken("queued", ("id", &id)))
}

/// Leaves a message in a directory: whole and on the disk, or not at all.
fn leave(directory: &Path, message: &Message) -> anyhow::Result<String> {
    let now = since_1970();
    let body = message.left(now)?;
    // In the order of time; two of one process and moment are told apart.
    let (pid, random) = (std::process::id(), rand::random::<u32>());
    let name = format!("{:020}-{pid}-{random:08x}.json", now.as_nanos());
    let (unfinished, file) = (directory.join(format!(".{name}")), directory.join(name));
    let written = write(&unfinished, body.as_bytes()).and_then(|()| fs::rename(&unfinished, &file));
    if let Err(e) = written {
        let _ = fs::remove_file(&unfinished);
        return Err(e.into());
    }
    // Its name is on the disk, too.
    File::open(directory)?.sync_all()?;
    Ok(message.taken("spooled", ("file", &file.display().to_string())))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Whatever has that name already is somebody else's.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(DROP_MODE).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The key to publish with; empty where there is none. Never an argument: everybody on this machine can read those.
fn api_key(file: Option<&Path>) -> anyhow::Result<String> {
    let key = match file {
        Some(file) => {
            let mut key = String::new();
            let text = File::open(file)
                .and_then(|opened| opened.take(API_KEY_BYTES_MAX + 1).read_to_string(&mut key));
            text.with_context(|| format!("--api-key-file {}", file.display()))?;
            if key.trim_end_matches(['\r', '\n']).is_empty() {
                bail!("--api-key-file {}: it is empty", file.display());
            }
            key
        }
        None => match std::env::var("RINGFEED_API_KEY") {
            Err(VarError::NotPresent) => String::new(),
            key => key.map_err(|_| anyhow!("RINGFEED_API_KEY: its value is not UTF-8"))?,
        },
    };
    let key = key.trim_end_matches(['\r', '\n']);
    if key.len() as u64 > API_KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!(
            "the API key is none that a header could carry; allowed are visible ASCII characters, at most \
             {API_KEY_BYTES_MAX}"
        );
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_may_be_an_address_a_name_or_a_url() {
        for (given, taken) in [
            ("127.0.0.1:9801", "127.0.0.1:9801"),
            ("localhost:9801", "localhost:9801"),
            ("http://localhost:9801", "localhost:9801"),
            ("http://[::1]:9801/", "[::1]:9801"),
        ] {
            assert_eq!(authority(given).unwrap(), taken);
        }
        for bad in
            ["", "localhost", ":9801", "http://a:b", "a:1/api", "a b:1", "a\r\n:1", "a:70000"]
        {
            assert!(authority(bad).unwrap_err().contains("allowed are HOST:PORT"), "{bad}");
        }
        assert!(authority("https://a:1").unwrap_err().contains("only http://"));
    }

    #[test]
    fn a_message_is_left_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let message = |data: &str| Message {
            channel: "orders".into(),
            payload: ("data", data.into()),
            key: Some(IdempotencyKey::new("a \"b\"").unwrap()),
        };
        for data in ["1", "2", "3"] {
            let told = leave(dir.path(), &message(data)).unwrap();
            let told: serde_json::Value = serde_json::from_str(&told).unwrap();
            assert_eq!((&told["ack"], &told["channel"]), (&json!("spooled"), &json!("orders")));
            assert!(Path::new(told["file"].as_str().unwrap()).exists());
        }
        let mut files: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let said = files.iter().map(|file| {
            let text = fs::read_to_string(file).unwrap();
            let mut said: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(said["created_ms"].take().is_u64(), "{text}");
            said
        });
        let expected = |data: u32| json!({"channel": "orders", "data": data, "idempotency_key": "a \"b\"", "created_ms": null});
        assert!(said.eq([1, 2, 3].map(expected)));
        let bad = Message { channel: "a b".into(), ..message("1") };
        assert!(leave(dir.path(), &bad).unwrap_err().to_string().contains("white space"));
        assert!(leave(&dir.path().join("nothing"), &message("1")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing half done is left");
    }
}
