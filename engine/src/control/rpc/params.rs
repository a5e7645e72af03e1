//! Parameters of statements: which there are, and values for them out of JSON. Nothing is made to fit: a value is of its
//! parameter's type and within its limits, or the call is refused.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ringfeed_protocol::CallError;
use ringfeed_protocol::printable::Printable;
use serde::Deserialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest text, bytes or JSON of a parameter that says nothing else.
const LENGTH_MAX: usize = 65_536;

/// What a parameter holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Type {
    Int,
    Float,
    Text,
    Bool,
    Timestamp,
    Json,
    Bytes,
}

impl Type {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Type::Int => "int",
            Type::Float => "float",
            Type::Text => "text",
            Type::Bool => "bool",
            Type::Timestamp => "timestamp",
            Type::Json => "json",
            Type::Bytes => "bytes",
        }
    }
}

/// One parameter, as a file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) r#type: Type,
    #[serde(default)]
    pub(crate) description: String,
    /// Must be there, and not `null`.
    #[serde(default)]
    pub(crate) required: bool,
    /// Stands for what is absent; without one that is `null`.
    pub(crate) default: Option<toml::Value>,
    pub(crate) example: Option<toml::Value>,
    /// Characters of a text, bytes of others.
    pub(crate) max_length: Option<usize>,
    pub(crate) min: Option<toml::Value>,
    pub(crate) max: Option<toml::Value>,
    pub(crate) r#enum: Option<Vec<toml::Value>>,
}

/// One parameter that makes sense.
#[derive(Debug, Clone)]
pub(crate) struct Param {
    pub(crate) spec: Spec,
    default: Option<Json>,
    least: Option<f64>,
    most: Option<f64>,
    /// Exact for whole numbers.
    least_int: i64,
    most_int: i64,
    allowed: Option<Vec<Json>>,
}

/// A value, of its parameter's type also where there is none.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Int(Option<i64>),
    Float(Option<f64>),
    Text(Option<String>),
    Bool(Option<bool>),
    Timestamp(Option<OffsetDateTime>),
    Json(Option<Box<RawValue>>),
    Bytes(Option<Vec<u8>>),
}

impl Param {
    /// Says what is wrong with a parameter as it stands in a file.
    pub(crate) fn new(spec: Spec) -> Result<Param, String> {
        let name = &spec.name;
        let mut signs = name.chars();
        let good = signs.next().is_some_and(|c| c.is_alphabetic() || c == '_')
            && signs.all(|c| c.is_alphanumeric() || c == '_');
        if !good {
            return Err(format!(
                "{name:?}: a name has letters, digits and '_', and begins with no digit"
            ));
        }
        let wrong = |key: &str, why: &str| format!("{name}.{key}: {why}");
        let (number, long) = match spec.r#type {
            Type::Int | Type::Float => (true, false),
            Type::Text | Type::Json | Type::Bytes => (false, true),
            Type::Bool | Type::Timestamp => (false, false),
        };
        if spec.max_length.is_some() && !long {
            return Err(wrong("max_length", "allowed with text, json and bytes"));
        }
        if (spec.min.is_some() || spec.max.is_some()) && !number {
            return Err(wrong("min and max", "allowed with int and float"));
        }
        if spec.r#enum.is_some() && matches!(spec.r#type, Type::Json | Type::Bytes | Type::Bool) {
            return Err(wrong("enum", "allowed with int, float, text and timestamp"));
        }
        if spec.default.is_some() && spec.required {
            return Err(wrong("default", "what is required has none"));
        }
        let json = |key: &str, value: &toml::Value| {
            serde_json::to_value(value).map_err(|_| wrong(key, "it cannot be written as JSON"))
        };
        let bound = |key: &str, value: &Option<toml::Value>| match value {
            None => Ok((None, None)),
            Some(toml::Value::Integer(n)) => Ok((Some(*n as f64), Some(*n))),
            Some(toml::Value::Float(n)) if spec.r#type == Type::Float => Ok((Some(*n), None)),
            Some(_) => Err(wrong(key, "it is no value of the parameter's type")),
        };
        let (least, least_int) = bound("min", &spec.min)?;
        let (most, most_int) = bound("max", &spec.max)?;
        let allowed = spec.r#enum.as_ref();
        let allowed = allowed.map(|all| all.iter().map(|one| json("enum", one)).collect());
        let param = Param {
            default: spec.default.as_ref().map(|own| json("default", own)).transpose()?,
            least,
            most,
            least_int: least_int.unwrap_or(i64::MIN),
            most_int: most_int.unwrap_or(i64::MAX),
            allowed: allowed.transpose()?,
            spec,
        };
        for (key, value) in param
            .default
            .iter()
            .map(|own| ("default", own))
            .chain(param.allowed.iter().flatten().map(|own| ("enum", own)))
        {
            param.read(&raw(value)).map_err(|e| format!("{}.{key}: {e}", param.spec.name))?;
        }
        Ok(param)
    }

    fn wrong(&self, why: impl std::fmt::Display) -> CallError {
        CallError::bad_params(format_args!("'{}' {why}", self.spec.name))
    }

    /// What stands for a value that was not given.
    fn absent(&self) -> Result<Value, CallError> {
        match &self.default {
            Some(default) => self.read(&raw(default)),
            None if self.spec.required => Err(self.wrong("is missing")),
            None => Ok(self.none()),
        }
    }

    fn none(&self) -> Value {
        match self.spec.r#type {
            Type::Int => Value::Int(None),
            Type::Float => Value::Float(None),
            Type::Text => Value::Text(None),
            Type::Bool => Value::Bool(None),
            Type::Timestamp => Value::Timestamp(None),
            Type::Json => Value::Json(None),
            Type::Bytes => Value::Bytes(None),
        }
    }

    fn length(&self, len: usize, of: &str) -> Result<(), CallError> {
        let most = self.spec.max_length.unwrap_or(LENGTH_MAX);
        if len > most {
            return Err(self.wrong(format_args!("has {len} {of}; allowed are {most}")));
        }
        Ok(())
    }

    fn read(&self, given: &RawValue) -> Result<Value, CallError> {
        let text = given.get();
        if text == "null" {
            return if self.spec.required {
                Err(self.wrong("must not be null"))
            } else {
                Ok(self.none())
            };
        }
        let string = || serde_json::from_str::<String>(text).ok();
        let value = match self.spec.r#type {
            Type::Int => {
                let number = text.parse::<i64>().ok();
                let (least, most) = (self.least_int, self.most_int);
                let fits = number.filter(|n| (least..=most).contains(n));
                let what =
                    || self.wrong(format_args!("must be a whole number from {least} to {most}"));
                Value::Int(Some(fits.ok_or_else(what)?))
            }
            Type::Float => {
                let number = serde_json::from_str::<f64>(text).ok().filter(|n| n.is_finite());
                let (least, most) = (self.least.unwrap_or(f64::MIN), self.most.unwrap_or(f64::MAX));
                let fits = number.filter(|n| *n >= least && *n <= most);
                let what =
                    || self.wrong(format_args!("must be a number from {least:?} to {most:?}"));
                Value::Float(Some(fits.ok_or_else(what)?))
            }
            Type::Bool => match text {
                "true" => Value::Bool(Some(true)),
                "false" => Value::Bool(Some(false)),
                _ => return Err(self.wrong("must be true or false")),
            },
            Type::Text => {
                let text = string().ok_or_else(|| self.wrong("must be a string"))?;
                self.length(text.chars().count(), "characters")?;
                Value::Text(Some(text))
            }
            Type::Timestamp => {
                let time = string().and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
                let what = || self.wrong("must be a time such as \"2030-01-31T12:00:00Z\"");
                Value::Timestamp(Some(time.ok_or_else(what)?))
            }
            Type::Bytes => {
                let bytes = string().and_then(|text| STANDARD.decode(text).ok());
                let bytes = bytes.ok_or_else(|| self.wrong("must be a string of padded base64"))?;
                self.length(bytes.len(), "bytes")?;
                Value::Bytes(Some(bytes))
            }
            Type::Json => {
                self.length(text.len(), "bytes")?;
                Value::Json(Some(given.to_owned()))
            }
        };
        if let Some(allowed) = &self.allowed {
            let own = serde_json::from_str::<Json>(text).ok();
            if !own.is_some_and(|own| allowed.contains(&own)) {
                let list: Vec<String> = allowed.iter().map(Json::to_string).collect();
                return Err(self.wrong(format_args!("must be one of {}", list.join(", "))));
            }
        }
        Ok(value)
    }
}

fn raw(value: &Json) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_default()
}

/// Values for all parameters, out of the object of a call.
pub(crate) fn read(params: &[Param], given: Option<&str>) -> Result<Vec<Value>, CallError> {
    let given: BTreeMap<String, &RawValue> = match given {
        None => BTreeMap::new(),
        // What serde says may repeat what came.
        Some(text) => serde_json::from_str(text)
            .map_err(|_| CallError::bad_params("'params' must be an object"))?,
    };
    if let Some(name) = given.keys().find(|name| !params.iter().any(|own| own.spec.name == **name))
    {
        let known: Vec<&str> = params.iter().map(|own| &*own.spec.name).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        let name = Printable::name(name);
        return Err(CallError::bad_params(format_args!(
            "'{name}' is no parameter; allowed are {known}"
        )));
    }
    let each = params.iter().map(|param| match given.get(&*param.spec.name) {
        Some(value) => param.read(value),
        None => param.absent(),
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(text: &str) -> Result<Param, String> {
        Param::new(toml::from_str(text).map_err(|e| e.message().to_owned())?)
    }

    #[test]
    fn values_are_of_their_type_and_within_their_limits_or_refused() {
        let whole = "must be a whole number from -9223372036854775808 to 9223372036854775807";
        for (of, given, why) in [
            ("type = 'int'", "7", ""),
            ("type = 'int'", "-9223372036854775808", ""),
            ("type = 'int'", "9223372036854775808", whole),
            ("type = 'int'", "1.0", whole),
            ("type = 'int'", "1e3", whole),
            ("type = 'int'", "\"1\"", whole),
            ("type = 'int'", "true", whole),
            ("type = 'int'\nmin = 1\nmax = 3", "4", "must be a whole number from 1 to 3"),
            ("type = 'int'\nenum = [1, 2]", "3", "must be one of 1, 2"),
            ("type = 'float'", "1", ""),
            ("type = 'float'", "1e999", "must be a number from"),
            ("type = 'float'\nmax = 1", "1.5", "must be a number from"),
            ("type = 'text'", "\"it's\"", ""),
            ("type = 'text'", "7", "must be a string"),
            ("type = 'text'\nmax_length = 2", "\"äöü\"", "has 3 characters; allowed are 2"),
            ("type = 'text'\nmax_length = 3", "\"äöü\"", ""),
            ("type = 'text'\nenum = ['a']", "\"A\"", "must be one of \"a\""),
            ("type = 'bool'", "true", ""),
            ("type = 'bool'", "1", "must be true or false"),
            ("type = 'timestamp'", "\"2030-01-31T12:00:00+02:00\"", ""),
            ("type = 'timestamp'", "\"2030-02-31T12:00:00Z\"", "must be a time"),
            ("type = 'timestamp'", "1", "must be a time"),
            ("type = 'bytes'", "\"AAEC\"", ""),
            ("type = 'bytes'", "\"AAE\"", "must be a string of padded base64"),
            ("type = 'json'", "{\"a\":[1]}", ""),
            ("type = 'json'\nmax_length = 2", "[1]", "has 3 bytes; allowed are 2"),
            ("type = 'text'\nrequired = true", "null", "must not be null"),
            ("type = 'text'", "null", ""),
        ] {
            let params = [param(&format!("name = 'a'\n{of}")).unwrap()];
            let read = read(&params, Some(&format!("{{\"a\":{given}}}")));
            match read {
                Ok(_) => assert!(why.is_empty(), "{of}: {given} was taken"),
                Err(e) => {
                    let e = e.to_string();
                    assert!(
                        !why.is_empty() && e.starts_with(&format!("'a' {why}")),
                        "{of}: {given}: {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_absent_has_its_default_and_what_is_unknown_is_refused() {
        let params = [
            param("name = 'a'\ntype = 'int'\ndefault = 5").unwrap(),
            param("name = 'b'\ntype = 'text'\nrequired = true").unwrap(),
        ];
        let values = read(&params, Some("{\"b\":\"x\"}")).unwrap();
        assert!(matches!(&values[..], [Value::Int(Some(5)), Value::Text(Some(x))] if x == "x"));
        for (given, why) in [
            (None, "'b' is missing"),
            (Some("{}"), "'b' is missing"),
            (Some("{\"b\":\"x\",\"c\":1}"), "'c' is no parameter; allowed are a, b"),
            (Some("[1,2]"), "'params' must be an object"),
        ] {
            assert_eq!(read(&params, given).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn parameters_that_make_no_sense_are_refused() {
        for (text, why) in [
            ("name = '1a'\ntype = 'int'", "\"1a\": a name has letters"),
            ("name = 'a'\ntype = 'int'\nmax_length = 3", "a.max_length: allowed with text"),
            ("name = 'a'\ntype = 'text'\nmin = 3", "a.min and max: allowed with int"),
            ("name = 'a'\ntype = 'int'\nmin = 3.5", "a.min: it is no value"),
            ("name = 'a'\ntype = 'int'\ndefault = 'x'", "a.default: 'a' must be a whole number"),
            ("name = 'a'\ntype = 'int'\ndefault = 4\nmax = 3", "a.default: 'a' must be a whole"),
            ("name = 'a'\ntype = 'text'\nenum = [1]", "a.enum: 'a' must be a string"),
            (
                "name = 'a'\ntype = 'int'\ndefault = 4\nrequired = true",
                "a.default: what is required",
            ),
            ("name = 'a'\ntype = 'inf'", "unknown variant `inf`"),
            ("name = 'a'\ntype = 'int'\nminimum = 1", "unknown field `minimum`"),
        ] {
            let told = param(text).unwrap_err();
            assert!(told.starts_with(why), "{text}: {told}");
        }
    }
}
