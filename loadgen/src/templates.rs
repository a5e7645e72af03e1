//! Speaking to any WebSocket server: frames given as templates on the command line, and the stamps by
//! which made-up messages are recognised in whatever comes back.

use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;

/// What a server is told, with `{channel}`, `{payload}` and `{size}` filled in and `\r` and `\n` read
/// as escapes.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Other servers than ringfeed")]
pub(crate) struct Templates {
    /// Text sent for each subscription, with {channel}. This, or {channels} in the URL, has loadgen
    /// speak to a server that knows none of ringfeed's dialects.
    #[arg(long, value_name = "TEXT")]
    pub(crate) subscribe_frame: Option<String>,
    /// Text sent once on each connection, before any subscription.
    #[arg(long, value_name = "TEXT")]
    pub(crate) hello_frame: Option<String>,
    /// Text sent for each message, with {channel}, {payload} and {size}, the payload's bytes.
    #[arg(long, value_name = "TEXT")]
    pub(crate) publish_frame: Option<String>,
    /// WebSocket to publish over, where that is another one.
    #[arg(long, value_name = "URL")]
    pub(crate) publish_url: Option<String>,
    /// Send what is published as it is over TCP to this address instead of in WebSocket frames.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) publish_tcp: Option<String>,
    /// Text sent first on the publisher's connection.
    #[arg(long, value_name = "TEXT")]
    pub(crate) publish_hello: Option<String>,
    /// Processes of the server: their CPU time and memory are reported.
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Vec<u32>,
}

impl Templates {
    /// Whether the subscribers speak templates.
    pub(crate) fn are_used(&self, url: &str) -> bool {
        self.subscribe_frame.is_some() || url.contains("{channels}")
    }

    pub(crate) fn publish_address(&self) -> anyhow::Result<Option<SocketAddr>> {
        let Some(text) = &self.publish_tcp else { return Ok(None) };
        let mut found = text.to_socket_addrs().with_context(|| format!("--publish-tcp {text}"))?;
        found.next().with_context(|| format!("--publish-tcp {text}: no address")).map(Some)
    }

    /// The frames that open a connection's subscriptions.
    pub(crate) fn subscribing<'a>(
        &'a self,
        channels: impl Iterator<Item = &'a str> + 'a,
    ) -> impl Iterator<Item = Vec<u8>> + 'a {
        let hello = self.hello_frame.as_deref().map(|text| fill(text, "", b""));
        let each = channels.filter_map(|channel| {
            self.subscribe_frame.as_deref().map(|text| fill(text, channel, b""))
        });
        hello.into_iter().chain(each)
    }

    /// What is sent for one message.
    pub(crate) fn publishing(&self, channel: &str, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        match &self.publish_frame {
            Some(text) => Ok(fill(text, channel, payload)),
            None => bail!("--publish-frame is needed to publish to this server"),
        }
    }
}

/// A template with its fields filled in.
pub(crate) fn fill(template: &str, channel: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(template.len() + payload.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '\\']) {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        let size;
        let fields: [(&str, &[u8]); 5] = [
            ("{channel}", channel.as_bytes()),
            ("{payload}", payload),
            ("{size}", {
                size = payload.len().to_string();
                size.as_bytes()
            }),
            ("\\r", b"\r"),
            ("\\n", b"\n"),
        ];
        match fields.into_iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, value)) => {
                out.extend_from_slice(value);
                rest = &rest[name.len()..];
            }
            None => {
                out.push(rest.as_bytes()[0]);
                rest = &rest[1..];
            }
        }
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// What a made-up message says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// Number of a message in its channel, times the number of channels, plus the channel.
    Message(u64),
    /// A message before those that count: the how manieth (from 1) to a place in the list of channels.
    WarmUp { channel: u32, round: u32 },
}

const MESSAGE: &[u8] = b"{\"n\":";
const WARM_UP: &[u8] = b"{\"warmup\":";
const ROUND: &[u8] = b",\"round\":";
/// Longest stamp: the longer prefix, two numbers and what is between them.
const STAMP_BYTES_MAX: usize = 64;

/// The payload of a message that only shows that a subscription stands.
pub(crate) fn warm_up(channel: u32, round: u32) -> String {
    format!("{{\"warmup\":{channel},\"round\":{round}}}")
}

/// Where the next stamp begins and what it says. `Err` with where to look again once more is there.
pub(crate) fn find_stamp(bytes: &[u8]) -> Result<(usize, Stamp), usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|&byte| byte == b'{') {
        let at = from + at;
        let rest = &bytes[at..];
        if let Some(digits) = rest.strip_prefix(MESSAGE) {
            if let Some(number) = number(digits) {
                return Ok((at, Stamp::Message(number)));
            }
        } else if let Some((channel, round)) = rest.strip_prefix(WARM_UP).and_then(warmed_up) {
            return Ok((at, Stamp::WarmUp { channel, round }));
        }
        if rest.len() < STAMP_BYTES_MAX && is_cut(rest) {
            return Err(at);
        }
        from = at + 1;
    }
    Err(bytes.len())
}

/// Whether more bytes could make a stamp of these.
fn is_cut(rest: &[u8]) -> bool {
    [MESSAGE, WARM_UP].into_iter().any(|prefix| match rest.strip_prefix(prefix) {
        Some(digits) => !digits.contains(&b'}') && number(digits).is_none_or(|_| prefix == WARM_UP),
        None => prefix.starts_with(rest),
    })
}

fn warmed_up(rest: &[u8]) -> Option<(u32, u32)> {
    let channel = number(rest)?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    let round = number(rest.get(digits..)?.strip_prefix(ROUND)?)?;
    Some((u32::try_from(channel).ok()?, u32::try_from(round).ok()?))
}

/// Digits up to something else.
fn number(digits: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (i, &byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
            }
            _ => return (i > 0).then_some(value),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_in() {
        let text = r"PUB {channel} {size}\r\n{payload}\r\n{other} \x";
        let filled = fill(text, "a.b", b"{\"n\":1}");
        assert_eq!(filled, b"PUB a.b 7\r\n{\"n\":1}\r\n{other} \\x");
    }

    #[test]
    fn stamps_are_found_wherever_they_begin_and_wherever_they_are_cut() {
        let text = b"MSG {x} 7\r\n{\"n\":42,\"pad\":\"x\"}\r\n";
        assert_eq!(find_stamp(text), Ok((11, Stamp::Message(42))));
        for cut in 12..18 {
            assert_eq!(find_stamp(&text[..cut]), Err(11), "{cut}");
        }
        assert_eq!(find_stamp(b"INFO {\"server\":1}"), Err(17));
        let warm = warm_up(7, 3);
        let found = Stamp::WarmUp { channel: 7, round: 3 };
        assert_eq!(find_stamp(warm.as_bytes()), Ok((0, found)));
        for cut in 1..warm.len() - 1 {
            assert_eq!(find_stamp(&warm.as_bytes()[..cut]), Err(0), "{cut}");
        }
    }
}
