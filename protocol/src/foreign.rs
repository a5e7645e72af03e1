//! What the other programs of existing systems tell each other, in Redis, in files or over HTTP, and not to clients: read into what is
//! to be published, and written from what was.
//!
//! Dialects are what their clients are told. Where both say the same, it is made in the dialect and used here.

pub mod fluxus;
pub mod portico;
pub mod wsnode;

pub use crate::dialect::object::Object;

/// Why something is none of what such a program says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    /// It is not text at all.
    #[error("it is not UTF-8")]
    NotText,
    /// Or one that not every receiver could read.
    #[error("it is no JSON object")]
    NotAnObject,
    /// It says something that nobody here understands.
    #[error("its '{0}' is missing, or is nothing that is known here")]
    Field(&'static str),
}

/// Reads a text that is a JSON object.
fn object(payload: &[u8]) -> Result<Object<'_>, ForeignError> {
    let text = std::str::from_utf8(payload).map_err(|_| ForeignError::NotText)?;
    Object::parse(text).ok_or(ForeignError::NotAnObject)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(
            bytes: Vec<u8>,
            fields in proptest::collection::vec(
                ("(type|channel|data|target|sessionId|roomId|_metadata)", "(\"session\"|\"session_targeted\"|\"\"|\\{\\}|7|null)"), 0..4,
            ),
        ) {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            for payload in [&bytes[..], format!("{{{}}}", fields.join(",")).as_bytes()] {
                if let Ok(message) = fluxus::read(payload) {
                    prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(message.data).is_ok());
                }
                for source in portico::Source::ALL {
                    if let Ok(told) = portico::read(source, payload, 0) {
                        prop_assert!(!told.room.is_empty() && Object::parse(&told.data).is_some());
                    }
                }
            }
        }
    }
}
