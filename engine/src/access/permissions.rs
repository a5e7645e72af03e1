//! Stub.
use super::Identity;
use crate::config::{ChannelRule, Config, ConfigErrors, Publishers, Subscribers};
use ringfeed_protocol::{Operation, UserId};
#[derive(Debug)]
pub struct Permissions;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Yes,
    No(&'static str),
    WhileSubscribed,
    Token,
    Ask,
}
impl Permissions {
    pub fn new(_: &Config) -> Result<Permissions, ConfigErrors> {
        Ok(Permissions)
    }
    pub fn may_send(&self, _: &Identity, _: &UserId) -> bool {
        false
    }
    pub fn may(
        &self,
        rule: Option<&ChannelRule>,
        _: &Identity,
        operation: Operation,
        _: &str,
    ) -> Verdict {
        let Some(rule) = rule else { return Verdict::No("by nobody") };
        match operation {
            Operation::Publish => match rule.publish {
                Publishers::Anyone => Verdict::Yes,
                Publishers::Api => Verdict::No("over the HTTP API only"),
            },
            _ => match rule.subscribe {
                Subscribers::Anyone => Verdict::Yes,
                Subscribers::Nobody => Verdict::No("by nobody"),
            },
        }
    }
}
