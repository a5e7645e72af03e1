//! JSON Schema, through a library that is kept from everything that a schema could have it do beside looking at a
//! document: no reference leads out of the schema itself, and patterns take time that grows with the text alone.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::{PatternOptions, ValidationError, Validator};
use ringfeed_protocol::printable::{Detail, Printable};
use serde_json::Value;

use super::document;

/// A pattern that takes more memory, in bytes, is refused: how long it takes to match grows with that.
const PATTERN_BYTES_MAX: usize = 1 << 18;
/// Objects and arrays of a schema that refers to itself: it may go through all of them for each level of a document, with a
/// thread's stack of 2 MiB.
const PLACES_MAX: usize = 512;
/// Of one that does not, with each reference counted as what it leads to: a document may be held against all of them at
/// each of its places.
const EXPANDED_MAX: usize = 4096;
/// Keywords with several ways to fit: why a document fits none is as long as all of them together.
const BRANCHES: [&str; 4] = ["anyOf", "oneOf", "not", "contains"];
/// Keywords whose schemas hold only where something refers to them.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
/// Keywords that refer to another place.
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// A schema that was read.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    /// Whether it is said where and why a document does not fit. Where there are branches to say it takes time and memory for
    /// each of them at each place of a document, and in a schema that refers to itself more with each level.
    explains: bool,
}

impl Schema {
    /// Of the text of one; or where it is wrong, and why.
    pub fn parse(text: &str) -> Result<Schema, String> {
        let schema: Value =
            serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
        let built = jsonschema::options()
            .offline()
            .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX))
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            .build(&schema);
        let validator = built.map_err(|e| Detail::new(placed(&e, &e)).to_string())?;
        let (comes_back, places) = (refers_to_itself(&schema), places(&schema));
        if comes_back && places > PLACES_MAX {
            return Err(format!(
                "it refers to itself and has {places} objects and arrays; allowed are {PLACES_MAX} then"
            ));
        }
        if !comes_back && expanded(&schema, &schema, &mut BTreeMap::new()) > EXPANDED_MAX {
            return Err(format!(
                "with what its references lead to it has more than {EXPANDED_MAX} objects and arrays"
            ));
        }
        Ok(Schema { validator, explains: !comes_back && !has_branches(&schema) })
    }

    /// Whether a document fits; or where it does not, and why, without what stands there.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), Detail> {
        let document = document::read(bytes).map_err(Detail::new)?;
        if self.validator.is_valid(&document) {
            return Ok(());
        }
        let explained = if self.explains { self.validator.validate(&document) } else { Ok(()) };
        Err(match explained {
            Err(e) => Detail::new(placed(&e, &e.masked())),
            Ok(()) => "it does not fit the schema of the channel".into(),
        })
    }
}

/// `what` with its place in front, as a JSON pointer (RFC 6901).
fn placed(error: &ValidationError, what: &dyn std::fmt::Display) -> String {
    let what = Printable::new(what, ringfeed_protocol::printable::DETAIL_BYTES_MAX);
    match error.instance_path().as_str() {
        "" => what.to_string(),
        place => format!("{}: {what}", Printable::name(place)),
    }
}

/// Objects and arrays in a value, itself included.
fn places(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(places).sum::<usize>(),
        Value::Object(entries) => 1 + entries.values().map(places).sum::<usize>(),
        _ => 0,
    }
}

/// The same with what references lead to, as often as they do, in a schema that does not refer to itself.
fn expanded(schema: &Value, place: &Value, known: &mut BTreeMap<*const Value, usize>) -> usize {
    let own: *const Value = place;
    if let Some(&count) = known.get(&own) {
        return count;
    }
    let mut count = usize::from(place.is_array() || place.is_object());
    let mut add = |more: &Value| {
        count = count.saturating_add(expanded(schema, more, known));
    };
    match place {
        Value::Array(items) => items.iter().for_each(&mut add),
        Value::Object(keywords) => {
            for (keyword, value) in keywords {
                if REFERENCES.contains(&&**keyword) {
                    let pointer = value.as_str().and_then(|own| own.strip_prefix('#'));
                    pointer.and_then(|own| schema.pointer(own)).into_iter().for_each(&mut add);
                } else if !DEFINITIONS.contains(&&**keyword) {
                    add(value);
                }
            }
        }
        _ => {}
    }
    known.insert(own, count);
    count
}

/// Whether a schema has several ways to fit, or to fit not.
fn has_branches(place: &Value) -> bool {
    match place {
        Value::Array(items) => items.iter().any(has_branches),
        Value::Object(keywords) => keywords
            .iter()
            .any(|(keyword, value)| BRANCHES.contains(&&**keyword) || has_branches(value)),
        _ => false,
    }
}

/// Whether a schema leads back to where it began. One whose references are of a kind that is not followed here is said to.
fn refers_to_itself(schema: &Value) -> bool {
    let mut walk = Walk { schema, around: BTreeSet::new(), seen: BTreeSet::new() };
    walk.comes_back(schema)
}

struct Walk<'a> {
    schema: &'a Value,
    /// Places that are being looked at, by their addresses.
    around: BTreeSet<*const Value>,
    /// Places from which nothing leads back.
    seen: BTreeSet<*const Value>,
}

impl<'a> Walk<'a> {
    fn comes_back(&mut self, place: &'a Value) -> bool {
        let own: *const Value = place;
        if self.seen.contains(&own) {
            return false;
        }
        if !self.around.insert(own) {
            return true;
        }
        let comes_back = match place {
            Value::Array(items) => items.iter().any(|item| self.comes_back(item)),
            Value::Object(keywords) => keywords.iter().any(|(keyword, value)| {
                if REFERENCES.contains(&&**keyword) {
                    self.target(value).is_none_or(|target| self.comes_back(target))
                } else if keyword == "$id" && !std::ptr::eq(place, self.schema) {
                    // From there on references are to something else.
                    true
                } else {
                    self.comes_back(value)
                }
            }),
            _ => false,
        };
        self.around.remove(&own);
        self.seen.insert(own);
        comes_back
    }

    /// Where a reference leads that is a plain pointer into this schema.
    fn target(&self, reference: &Value) -> Option<&'a Value> {
        self.schema.pointer(reference.as_str()?.strip_prefix('#')?)
    }
}
