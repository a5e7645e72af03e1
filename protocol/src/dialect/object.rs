//! JSON objects whose values are handed on as they came.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::json::has_lone_surrogate;

/// Fields in their order. Of several with one name the last counts.
#[derive(Debug, Default)]
pub struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Object<'a>, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                #[derive(serde::Deserialize)]
                struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

                let mut fields = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name, &RawValue>()? {
                    fields.push((name, value));
                }
                Ok(Object(fields))
            }
        }

        from.deserialize_map(Fields)
    }
}

impl<'a> Object<'a> {
    /// Of a text that is a JSON object, and one that every receiver can read.
    pub fn parse(text: &'a str) -> Option<Object<'a>> {
        serde_json::from_str(text).ok().filter(|_| !has_lone_surrogate(text))
    }

    /// Whether it has no fields.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A value as it came.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value.get())
    }

    /// A value that is a string.
    pub fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        serde_json::from_str::<Text>(self.raw(name)?).ok().map(|Text(text)| text)
    }

    /// A value that is a string, or a number as it is written.
    pub fn name(&self, name: &str) -> Option<Cow<'a, str>> {
        self.text(name).or_else(|| {
            let raw = self.raw(name)?;
            raw.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(Cow::Borrowed(raw))
        })
    }

    /// The object as text, with some fields, given as JSON, in the place of its own or behind them.
    pub fn with(&self, fields: &[(&str, &str)]) -> String {
        let mut out = String::from("{");
        let own = self.0.iter().filter(|(name, _)| fields.iter().all(|(other, _)| name != other));
        let own = own.map(|(name, value)| (&**name, value.get()));
        for (name, value) in own.chain(fields.iter().copied()) {
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&quoted(name));
            out.push(':');
            out.push_str(value);
        }
        out.push('}');
        out
    }
}

#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A text as a JSON string.
pub(crate) fn quoted(text: &str) -> String {
    // A str is always serializable.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_passes_through_as_it_came() {
        let text = r#" {"b":1.50e3, "\u0061":"x\"y","b" : [ 1,2 ], "n":-7}"#;
        let object = Object::parse(text).unwrap();
        assert_eq!(object.raw("b"), Some("[ 1,2 ]"), "the last one counts");
        assert_eq!(object.text("a").as_deref(), Some("x\"y"));
        assert_eq!((object.text("b"), object.name("n").as_deref()), (None, Some("-7")));
        assert_eq!(object.with(&[]), r#"{"b":1.50e3,"a":"x\"y","b":[ 1,2 ],"n":-7}"#);
        assert_eq!(
            object.with(&[("b", "0"), ("z", "null")]),
            r#"{"a":"x\"y","n":-7,"b":0,"z":null}"#
        );
    }

    #[test]
    fn what_is_no_object_or_could_not_be_read_is_none() {
        for text in ["", "[]", "1", "\"{}\"", "{", "{}x", r#"{"a":"\ud800"}"#] {
            assert!(Object::parse(text).is_none(), "{text}");
        }
        assert!(Object::parse("{}").is_some());
    }
}
