//! Permissions that travel with an identity, as a token's claim `permissions` or the application's answer has them.

use std::fmt;

use ringfeed_protocol::{ChannelName, Operation};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use smol_str::SmolStr;

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
        struct Sides;
        impl<'de> Visitor<'de> for Sides {
            type Value = Grants;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with allow and deny")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Grants, A::Error> {
                let (mut allow, mut deny) = (None, None);
                while let Some((word, Side(grants))) = map.next_entry::<String, Side>()? {
                    let side = match &*word {
                        "allow" => &mut allow,
                        "deny" => &mut deny,
                        _ => return Err(A::Error::custom("allowed are allow and deny")),
                    };
                    if side.replace(grants).is_some() {
                        return Err(A::Error::custom("a word stands there twice"));
                    }
                }
                let (allow, deny) = (allow.unwrap_or_default(), deny.unwrap_or_default());
                if allow.len() + deny.len() > GRANTS_MAX {
                    return Err(A::Error::custom("it has more than 256 patterns"));
                }
                Ok(Grants { allow, deny })
            }
        }
        from.deserialize_map(Sides)
    }
}

/// What is allowed, or what is denied.
struct Side(Vec<Grant>);

impl<'de> Deserialize<'de> for Side {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Side, D::Error> {
        struct Operations;
        impl<'de> Visitor<'de> for Operations {
            type Value = Side;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with operations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Side, A::Error> {
                let mut named: Vec<Operation> = Vec::new();
                let mut grants = Vec::new();
                while let Some((word, patterns)) = map.next_entry::<String, Vec<String>>()? {
                    let operation = Operation::from_name(&word)
                        .ok_or_else(|| A::Error::custom("there is no such operation"))?;
                    if named.contains(&operation) {
                        return Err(A::Error::custom("an operation stands there twice"));
                    }
                    named.push(operation);
                    for pattern in patterns {
                        check_pattern(&pattern).map_err(A::Error::custom)?;
                        grants.push(Grant { operation, pattern: pattern.into() });
                    }
                }
                Ok(Side(grants))
            }
        }
        from.deserialize_map(Operations)
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
