//! Close codes: those of RFC 6455 and ringfeed's own.
//!
//! Ringfeed's own codes tell a client what to do: 4000..=4499 reconnect (and resume), 4500..=4999
//! do not, the same attempt would end the same way.

/// A close code that may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// 1000: the purpose is fulfilled.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// 1002: the peer broke RFC 6455.
    pub const PROTOCOL: CloseCode = CloseCode(1002);
    /// 1007: text that is not UTF-8.
    pub const INVALID_DATA: CloseCode = CloseCode(1007);
    /// 1009: a message beyond the limit.
    pub const TOO_LARGE: CloseCode = CloseCode(1009);
    /// 1012: the server restarts; come back after the announced delay.
    pub const SERVICE_RESTART: CloseCode = CloseCode(1012);
    /// 1013: the server has no room for what this connection wants; come back later.
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013);
    /// 4000: the reader fell out of the channel's window; resume from the last offset.
    pub const LAGGED: CloseCode = CloseCode(4000);
    /// 4001: nothing was heard from the client within the heartbeat's limit.
    pub const NO_HEARTBEAT: CloseCode = CloseCode(4001);
    /// 4002: replies pile up because the client does not read.
    pub const SLOW: CloseCode = CloseCode(4002);
    /// 4003: a message was begun and not finished in time.
    pub const MESSAGE_TIMEOUT: CloseCode = CloseCode(4003);
    /// 4004: without a subscription, and nothing but pings came for long.
    pub const IDLE: CloseCode = CloseCode(4004);
    /// 4005: the token has expired; come back with a new one.
    pub const EXPIRED: CloseCode = CloseCode(4005);
    /// 4500: a command that the dialect cannot answer in band was refused; the reason says why.
    pub const REFUSED: CloseCode = CloseCode(4500);
    /// 4501: the client goes on sending above the message rate.
    pub const RATE_LIMITED: CloseCode = CloseCode(4501);

    /// 4502: the application has ended the connection.
    pub const DISCONNECTED: CloseCode = CloseCode(4502);
    /// 4503: nobody has vouched for the client, or not so that it was believed; the reason says what is wrong.
    pub const UNAUTHENTICATED: CloseCode = CloseCode(4503);
    /// 4504: the token, or all of the user, was revoked.
    pub const REVOKED: CloseCode = CloseCode(4504);
    /// 4505: the user has as many connections as one may have.
    pub const TOO_MANY: CloseCode = CloseCode(4505);

    /// Whether a peer may send this code in a close frame (RFC 6455 section 7.4.2 and the IANA
    /// registry).
    pub fn may_travel(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}
