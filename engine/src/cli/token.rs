//! `ringfeed token`: making tokens, and finding out what one says and whether it is taken.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use ringfeed_engine::access::token::{
    Checked, Issuers, RemoteKeys, Signer, TOKEN_BYTES_MAX, TokenError, unverified,
};
use ringfeed_engine::config::{Config, Issuer};
use ringfeed_protocol::{ChannelName, UserId};
use serde_json::{Map, Value};

use super::configuration::{ConfigArgs, issuers, load, sources};
use super::output::say;

/// Largest key file.
const KEY_BYTES_MAX: u64 = 64 << 10;
const DAY_S: u64 = 86_400;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token, signed with the secret of an issuer of the configuration or with a private key.
    Make(MakeArgs),
    /// Print what a token says, and whether this configuration takes it; exit with 1 if not.
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub(super) struct MakeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Id of the user.
    #[arg(long)]
    user: Option<String>,
    /// A role. May be repeated.
    #[arg(long = "role", value_name = "NAME")]
    roles: Vec<String>,
    /// A channel to subscribe to at once. May be repeated.
    #[arg(long = "channel", value_name = "NAME")]
    channels: Vec<String>,
    /// For how long it counts: 30s, 15m, 1h or 7d.
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = seconds)]
    expires: u64,
    /// Another claim: JSON, or text if it is not JSON. May be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Value)>,
    /// Whose token it is: the value of `issuer`. Without it, of the first issuer that has a secret.
    #[arg(long)]
    issuer: Option<String>,
    /// PEM file with the private key to sign with, in the place of the issuer's secret.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Which of its issuer's published keys that is.
    #[arg(long, requires = "key")]
    kid: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The token. `-` reads it from standard input, which other users of this machine cannot see.
    #[arg(default_value = "-", hide_default_value = true)]
    token: String,
}

impl TokenCommand {
    /// Where it is said that the configuration is.
    pub(super) fn config_args(&mut self) -> &mut ConfigArgs {
        match self {
            TokenCommand::Make(args) => &mut args.config,
            TokenCommand::Inspect(args) => &mut args.config,
        }
    }
}

pub(super) fn run(command: &TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Make(args) => make(args),
        TokenCommand::Inspect(args) => inspect(args),
    }
}

fn make(args: &MakeArgs) -> anyhow::Result<()> {
    let sources = sources(&args.config);
    let config = load(&sources)?;
    let (at, issuer) = chosen(&config, args)?;
    let signer = match &args.key {
        Some(file) => {
            Signer::from_pem(&read_key(file)?).with_context(|| format!("{}", file.display()))?
        }
        None => issuers(&config)?
            .signer(at)
            .context("this issuer has no secret; --key FILE signs with a private key")?,
    };
    let claims = Value::Object(claims(args, issuer, now()?)?).to_string();
    let token = signer.sign(args.kid.as_deref(), &claims)?;
    if token.len() > TOKEN_BYTES_MAX {
        bail!("the token has {} bytes; allowed are {TOKEN_BYTES_MAX}", token.len());
    }
    say(&token)
}

/// The issuer that is meant, and its number.
fn chosen<'a>(config: &'a Config, args: &MakeArgs) -> anyhow::Result<(usize, &'a Issuer)> {
    let mut entries = config.issuers.iter().enumerate();
    let found = match &args.issuer {
        Some(name) => entries.find(|(_, issuer)| issuer.issuer == *name),
        None => entries.find(|(_, issuer)| args.key.is_some() || !issuer.secret.is_empty()),
    };
    found.context(match args.issuer {
        Some(_) => "the configuration has no issuer of this name",
        None => "the configuration has no issuer with a secret; --config FILE names one that has",
    })
}

fn claims(args: &MakeArgs, issuer: &Issuer, now: u64) -> anyhow::Result<Map<String, Value>> {
    let mut claims = Map::new();
    let mut put = |name: &str, value: Value| match claims.insert(name.to_owned(), value) {
        None => Ok(()),
        Some(_) => bail!("the claim {name:?} is given twice"),
    };
    if !issuer.issuer.is_empty() {
        put("iss", issuer.issuer.as_str().into())?;
    }
    if let Some(audience) = issuer.audience.first() {
        put("aud", audience.as_str().into())?;
    }
    if let Some(user) = &args.user {
        UserId::new(user)?;
        put(&issuer.user_claim, user.as_str().into())?;
    }
    if !args.roles.is_empty() {
        if issuer.roles_claim.is_empty() {
            bail!("the issuer has no claim for roles (roles_claim)");
        }
        put(&issuer.roles_claim, args.roles.clone().into())?;
    }
    if !args.channels.is_empty() {
        for channel in &args.channels {
            ChannelName::new(channel)?;
        }
        put("channels", args.channels.clone().into())?;
    }
    put("iat", now.into())?;
    put("exp", now.saturating_add(args.expires).into())?;
    for (name, value) in &args.claims {
        put(name, value.clone())?;
    }
    Ok(claims)
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let sources = sources(&args.config);
    let config = load(&sources)?;
    let issuers = issuers(&config)?;
    let token = match args.token.as_str() {
        "-" => {
            let mut text = String::new();
            // What is longer is refused as such.
            let most = TOKEN_BYTES_MAX as u64 + 3;
            let stdin = std::io::stdin().take(most);
            { stdin }.read_to_string(&mut text).context("reading standard input")?;
            text.trim_end().to_owned()
        }
        token => token.to_owned(),
    };
    let now = now()?;
    if let Some((header, claims)) = unverified(&token) {
        say(&shown(&header, &claims, now))?;
    }
    if issuers.is_empty() {
        bail!("not accepted: the configuration has no issuers, so that no token is");
    }
    match accepted(&issuers, &token, now) {
        Ok(whose) => say(&format!("accepted: {whose}")),
        Err(TokenError::UnknownKey { url, .. }) => {
            bail!(
                "not accepted here: its key would be looked for at {url}, which this command does not ask"
            )
        }
        Err(e) => bail!("not accepted: {e}"),
    }
}

/// Whose token it is, or for which channel.
fn accepted(issuers: &Issuers, token: &str, now: u64) -> Result<String, TokenError> {
    let known = RemoteKeys::default();
    match issuers.check(token, now, &known) {
        Ok(Checked { admitted, .. }) => {
            let user = admitted.identity.user.as_deref().unwrap_or_default();
            Ok(format!("it is the user {}'s", printable(user)))
        }
        Err(TokenError::BadClaim(name)) if name == "channel" => {
            let (channel, expires_at) = issuers.channel_of(token, now, &known)?;
            let left = expires_at.saturating_sub(now);
            Ok(format!("for {left} s, to subscribe to {}", printable(&channel)))
        }
        Err(e) => Err(e),
    }
}

/// Header and claims, and its times for people.
fn shown(header: &Value, claims: &Value, now: u64) -> String {
    let mut text = String::new();
    for (what, value) in [("header", header), ("claims", claims)] {
        let _ = writeln!(text, "{what}: {value:#}");
    }
    for (claim, what) in [("iat", "issued"), ("nbf", "valid from"), ("exp", "expires")] {
        if let Some(time) = claims.get(claim).and_then(Value::as_u64) {
            let _ = writeln!(text, "{what}: {}", moment(time, now));
        }
    }
    printable(text.trim_end())
}

/// Text from outside without what would act on a terminal.
fn printable(text: &str) -> String {
    let unfit = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if unfit(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

/// Seconds since 1970 as a date (UTC), and how far that is from now.
fn moment(time: u64, now: u64) -> String {
    let away = match time.checked_sub(now) {
        Some(ahead) => format!("in {}", span(ahead)),
        None => format!("{} ago", span(now.saturating_sub(time))),
    };
    // Howard Hinnant's days_from_civil, the other way: years begin in March, eras have 400 of them.
    let (days, second) = (time / DAY_S + 719_468, time % DAY_S);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) =
        (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC, {away}")
}

/// A length of time in its largest two units.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / DAY_S, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} days {hours} h"),
    }
}

/// `90s`, `15m`, `1h` and `7d`.
fn seconds(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", DAY_S)];
    let read = units.iter().find_map(|&(unit, seconds)| {
        let number = text.strip_suffix(unit)?.parse::<u32>().ok().filter(|&number| number > 0)?;
        Some(u64::from(number) * seconds)
    });
    read.ok_or_else(|| "allowed are times such as 30s, 15m, 1h and 7d".into())
}

/// `NAME=VALUE`.
fn claim(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            let json = serde_json::from_str(value);
            Ok((name.to_owned(), json.unwrap_or_else(|_| value.into())))
        }
        _ => Err("allowed is NAME=VALUE".into()),
    }
}

fn read_key(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut pem = Vec::new();
    let read = std::fs::File::open(file).and_then(|f| f.take(KEY_BYTES_MAX).read_to_end(&mut pem));
    read.with_context(|| format!("{}", file.display()))?;
    Ok(pem)
}

fn now() -> anyhow::Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("this machine's clock stands before 1970")?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_dates() {
        for (time, date) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_799, "2000-02-29 23:59:59"),
            (1_709_164_800, "2024-02-29 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (253_402_300_799, "9999-12-31 23:59:59"),
        ] {
            assert_eq!(moment(time, time), format!("{date} UTC, in 0 s"));
        }
        assert!(moment(1 << 53, 0).ends_with("UTC, in 104249991374 days 7 h"));
        assert!(moment(u64::MAX, 0).contains("UTC"));
        assert_eq!(
            (span(61), span(3661), span(90_000)),
            ("1 min 1 s".into(), "1 h 1 min".into(), "1 days 1 h".into())
        );
    }

    #[test]
    fn lengths_of_time_have_a_unit() {
        for (text, expected) in [("30s", 30), ("15m", 900), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for bad in ["", "1", "h", "0s", "-1h", "1.5h", "1 h", "1w", "99999999999h"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn claims_are_json_or_text() {
        assert_eq!(claim("n=1"), Ok(("n".into(), 1.into())));
        assert_eq!(claim("n=a=b"), Ok(("n".into(), "a=b".into())));
        assert_eq!(claim("n=[\"a\"]"), Ok(("n".into(), vec!["a"].into())));
        assert!(claim("n").is_err() && claim("=1").is_err());
    }

    #[test]
    fn nothing_in_a_token_acts_on_a_terminal() {
        let claims: Value = serde_json::json!({ "sub": "\u{1b}[2J\u{9b}\u{202e}\r\nx" });
        let shown = shown(&Value::Null, &claims, 0);
        assert!(
            !shown.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'),
            "{shown:?}"
        );
    }
}
