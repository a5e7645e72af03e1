//! Methods that clients call: those of the engine itself, SQL statements, and those that an application answers over HTTP
//! (`docs/RPC.md`).
//!
//! A shard's question comes in, and its answer goes back exactly once, in its time. It all lives on the control thread, in
//! its `LocalSet`, and waits for nothing there: databases and applications are asked asynchronously.

mod builtin;
mod database;
mod figures;
mod methods;
mod params;
mod sql;
mod statement;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringfeed_protocol::CallError;
use ringfeed_protocol::printable::Printable;
use tokio::time::{Instant, timeout_at};

use super::State;
use super::figures::LogLimit;
use super::hooks::{self, Backends, Call, HooksError};
use crate::message::{Answer, Asked, Question};
use crate::settings::Settings;
use database::Database;
use figures::{Kind, Outcome};
use methods::{Behind, Method};
use statement::Statement;

pub(super) use figures::Figures;
pub(super) use hooks::reply;
pub use methods::Methods;

/// Between two lines in the log about failed statements.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// What is left to say so once the time is over in which a database or an application should have.
const LATE: Duration = Duration::from_millis(700);

/// Which methods there are, as generated clients read it (`/api/rpc-methods`). `server` is its name, `date` the time.
pub fn listing(settings: &Settings, server: &str, date: &str) -> serde_json::Value {
    settings.methods.listing(server, date)
}

/// What holds of one configuration.
struct Running {
    methods: Arc<Methods>,
    databases: Vec<Rc<Database>>,
    backends: Backends,
    answer_bytes_max: usize,
}

/// Everything that is called. Belongs to the control thread.
pub(super) struct Rpc {
    state: Arc<State>,
    running: RefCell<Rc<Running>>,
    log: LogLimit,
}

impl Rpc {
    /// Goes by the settings that hold.
    pub(super) fn new(state: Arc<State>) -> Result<Rpc, HooksError> {
        let running = Running::new(&state, None)?;
        Ok(Rpc { state, running: RefCell::new(Rc::new(running)), log: LogLimit::new() })
    }

    /// Goes by the settings that hold now; on an error by those before. Calls under way go by those they began with.
    /// Databases that stay where they were keep their connections.
    pub(super) fn reconfigure(&self) -> Result<(), HooksError> {
        let before = self.running.borrow().clone();
        let running = Running::new(&self.state, Some(&before))?;
        self.running.replace(Rc::new(running));
        Ok(())
    }

    /// Takes one call. Its answer is sent in any case.
    pub(super) fn take(self: &Rc<Self>, asked: Asked, send: &reply::Send) {
        let Asked { shard, ticket, question } = asked;
        let reply = reply::Reply::new(send.clone(), shard, ticket, &question);
        let Question::Rpc { caller, prefix, method, params, timeout } = question else { return };
        let own = self.clone();
        tokio::task::spawn_local(async move {
            let (caller, params) = (&caller, params.as_deref());
            let call = Call { caller, prefix: &prefix, method: &method, params };
            let result = own.call(&call, timeout).await;
            reply.send(Answer::Rpc(result));
        });
    }

    /// Calls a method. What it gives is JSON of at most `rpc.answer_bytes_max` bytes.
    async fn call(&self, call: &Call<'_>, timeout: Duration) -> Result<Box<str>, CallError> {
        let figures = &self.state.rpc;
        let running = self.running.borrow().clone();
        let method = match running.methods.find_for(call.method, &call.caller.identity) {
            Ok(method) => method,
            Err(error) => {
                let result = Err(error);
                figures.begin(Kind::None);
                figures.end(Kind::None, Outcome::of(&result));
                return result;
            }
        };
        let kind = Kind::of(&method.behind);
        figures.begin(kind);
        let deadline = Instant::now() + timeout.min(method.timeout);
        let answer = self.behind(&running, method, call, deadline);
        let result = timeout_at(deadline + LATE, answer).await.unwrap_or(Err(CallError::TimedOut));
        let most = running.answer_bytes_max;
        let result = result.and_then(|text| match text.len() <= most {
            true => Ok(text),
            false => Err(CallError::failed(format_args!("the result is longer than {most} bytes"))),
        });
        figures.end(kind, Outcome::of(&result));
        result
    }

    async fn behind(
        &self,
        running: &Running,
        method: &Method,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<Box<str>, CallError> {
        match &method.behind {
            Behind::Builtin(of) => {
                builtin::call(&self.state, &running.methods, *of, call, deadline).await
            }
            Behind::Http(at) => running.backends.ask(*at, call, deadline).await,
            Behind::Sql(statement) => self.run(running, statement, call, deadline).await,
        }
    }

    async fn run(
        &self,
        running: &Running,
        statement: &Statement,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<Box<str>, CallError> {
        let values = params::read(&statement.params, call.params)?;
        let Some(database) = running.databases.get(statement.database) else {
            return Err(CallError::failed("there is no database for it"));
        };
        let most = running.answer_bytes_max;
        database.run(statement, &values, deadline, most).await.map_err(|trouble| {
            if trouble.is_ours()
                && let Some(kept_back) = self.log.due(LOG_EVERY)
            {
                let (method, database) = (call.method, database.name());
                let text = trouble.to_string();
                let why = Printable::new(&text, 1000);
                tracing::warn!(method, database, kept_back, "a statement has failed: {why}");
            }
            trouble.told()
        })
    }
}

impl Running {
    fn new(state: &State, before: Option<&Running>) -> Result<Running, HooksError> {
        let settings = state.shared.settings.load();
        let (config, methods) = (&settings.config, &settings.methods);
        let backends = Backends::new(config, &state.hooks, before.map(|before| &before.backends))?;
        let each = methods.places.iter().map(|place| {
            let kept = before.and_then(|before| {
                let mut places = before.methods.places.iter();
                let at = places.position(|own| own.name() == place.name() && own.is_same(place))?;
                before.databases.get(at).cloned()
            });
            kept.unwrap_or_else(|| Rc::new(Database::new(place)))
        });
        let databases = each.collect();
        let answer_bytes_max = usize::try_from(config.rpc.answer_bytes_max).unwrap_or(usize::MAX);
        Ok(Running { methods: methods.clone(), databases, backends, answer_bytes_max })
    }
}
