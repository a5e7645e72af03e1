//! Methods of the engine itself: what it knows, and nothing else.

use std::sync::Arc;

use ringfeed_protocol::CallError;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::methods::{Builtin, Methods};
use crate::clock::Clock;
use crate::control::hooks::Call;
use crate::control::{State, channels, stats};
use crate::message::Caller;

/// Channels that are listed at once.
const CHANNELS_MAX: usize = 1000;

/// Calls one of them. They have no parameters.
pub(super) async fn call(
    state: &Arc<State>,
    methods: &Methods,
    builtin: Builtin,
    call: &Call<'_>,
    deadline: Instant,
) -> Result<Box<str>, CallError> {
    super::params::read(&[], call.params)?;
    let value = match builtin {
        Builtin::Ping => json!({ "message": "pong", "time_ms": Clock::Machine.unix_ms() }),
        Builtin::ClientInfo => client_info(call.caller),
        Builtin::ServerStats => {
            let stats = stats::collect(state);
            serde_json::to_value(stats).map_err(|_| CallError::failed("there are none"))?
        }
        Builtin::ChannelsList => {
            let listed = channels::list(state, call.prefix, |_| true, CHANNELS_MAX, deadline).await;
            let listed = listed.map_err(|_| CallError::TimedOut)?;
            serde_json::to_value(listed).map_err(|_| CallError::failed("there are none"))?
        }
        Builtin::ServerMethods => methods.listed(),
    };
    Ok(value.to_string().into())
}

fn client_info(caller: &Caller) -> Value {
    let identity = &caller.identity;
    let roles = identity.attributes.iter().filter_map(|own| own.strip_prefix("role:"));
    let roles: Vec<&str> = roles.collect();
    json!({
        "connection": caller.connection.to_string(),
        "user": identity.user.as_deref(),
        "roles": roles,
        "expires_at": identity.expires_at,
    })
}
