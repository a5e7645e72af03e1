//! Permissions that travel with an identity, as a token's claim `permissions` or the application's answer has them.

use ringfeed_protocol::{ChannelName, Operation};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use smol_str::SmolStr;

use super::unique::Unique;
use crate::config::rules::check_pattern;

/// Grants of one identity: all are looked at for each publish of its connection.
const GRANTS_MAX: usize = 256;

/// Permissions that travel with an identity. A denial beats what is allowed, here and in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// What is allowed.
    pub allow: Vec<Grant>,
    /// What is denied.
    pub deny: Vec<Grant>,
}

/// An operation on all channels whose name fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// What.
    pub operation: Operation,
    /// A channel name, with `*` for any run of characters.
    pub pattern: SmolStr,
}

impl Grants {
    /// Who names channels lets in there.
    pub fn allow_channels(&mut self, channels: &[ChannelName]) {
        for channel in channels {
            let grant = Grant { operation: Operation::Subscribe, pattern: channel.as_str().into() };
            if !self.allow.contains(&grant) {
                self.allow.push(grant);
            }
        }
    }
}

/// `{"allow": {"subscribe": ["a.*"], …}, "deny": {…}}` with up to 256 patterns in all. A word that is not known might be
/// a denial, and of a word that stands there twice one would count for nothing, so that no part of it is taken then.
impl<'de> Deserialize<'de> for Grants {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Grants, D::Error> {
        let sides = Unique::<Unique<Vec<String>>>::deserialize(from)?;
        let mut grants = Grants::default();
        for (word, Unique(mut named)) in sides.0 {
            let side = match &*word {
                "allow" => &mut grants.allow,
                "deny" => &mut grants.deny,
                _ => return Err(D::Error::custom("allowed are allow and deny")),
            };
            for operation in Operation::ALL {
                for pattern in named.remove(operation.name()).into_iter().flatten() {
                    check_pattern(&pattern).map_err(D::Error::custom)?;
                    side.push(Grant { operation, pattern: pattern.into() });
                }
            }
            if !named.is_empty() {
                return Err(D::Error::custom("there is no such operation"));
            }
        }
        if grants.allow.len() + grants.deny.len() > GRANTS_MAX {
            return Err(D::Error::custom("it has more than 256 patterns"));
        }
        Ok(grants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Grants, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn all_operations_are_read() {
        let all = Operation::ALL.map(|operation| format!("{:?}:[\"a.*\"]", operation.name()));
        let grants = read(&format!("{{\"deny\":{{{}}}}}", all.join(","))).unwrap();
        let named: Vec<Operation> = grants.deny.iter().map(|grant| grant.operation).collect();
        assert!(named == Operation::ALL && grants.allow.is_empty(), "{grants:?}");
        assert_eq!(read("{}"), Ok(Grants::default()));
    }

    #[test]
    fn what_is_not_understood_as_a_whole_is_not_taken() {
        let many = vec!["\"a\""; 257].join(",");
        for bad in [
            "null",
            "[]",
            "[{},{}]",
            "{\"denny\":{}}",
            "{\"deny\":[]}",
            "{\"deny\":{\"write\":[]}}",
            "{\"deny\":{\"publish\":\"a\"}}",
            "{\"deny\":{\"publish\":[7]}}",
            "{\"deny\":{\"publish\":[\"\"]}}",
            "{\"deny\":{\"publish\":[\"a b\"]}}",
            "{\"deny\":{},\"deny\":{}}",
            "{\"deny\":{\"publish\":[\"a\"],\"publish\":[]}}",
            &format!("{{\"deny\":{{\"publish\":[{many}]}}}}"),
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
