//! JSON as a schema is held against it: of bounded depth, and with no name twice in an object. Readers disagree on which
//! of two values of a name counts (RFC 8259 section 4), so one of them could be what the schema never saw.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Arrays and objects in one another. Whoever looks at a document does so with a stack.
pub(super) const DEPTH_MAX: u32 = 32;

/// Reads a document. The error says what is wrong and where.
pub(super) fn read(bytes: &[u8]) -> serde_json::Result<Value> {
    let mut from = serde_json::Deserializer::from_slice(bytes);
    let document = Level(0).deserialize(&mut from)?;
    from.end()?;
    Ok(document)
}

/// How many arrays and objects are around a value.
#[derive(Clone, Copy)]
struct Level(u32);

impl Level {
    fn below<E: Error>(self) -> Result<Level, E> {
        if self.0 < DEPTH_MAX {
            return Ok(Level(self.0 + 1));
        }
        Err(E::custom(format_args!("more than {DEPTH_MAX} arrays and objects are in one another")))
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let (below, mut array) = (self.below()?, Vec::new());
        while let Some(item) = items.next_element_seed(below)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let (below, mut object) = (self.below()?, Map::new());
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(below)?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands there twice"));
            }
        }
        Ok(Value::Object(object))
    }
}
