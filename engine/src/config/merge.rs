//! Overlaying the defaults key by key, so that each wrong key is told and the others are still looked at.

use std::path::Path;

use toml::{Table, Value};

use super::DEFAULT_TOML;
use super::schema::Config;

pub(super) fn default_table() -> Table {
    DEFAULT_TOML.parse().expect("the embedded defaults are valid TOML")
}

pub(super) fn read_file(path: &Path) -> Result<Table, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    text.parse::<Table>().map_err(|e| format!("{}: {e}", path.display()))
}

/// Overlays a file key by key, so that each wrong key is told and the others are still looked at.
pub(super) fn overlay_file(
    merged: &mut Table,
    defaults: &Table,
    file: Table,
    errors: &mut Vec<String>,
) {
    for (section, value) in file {
        match (defaults.get(&section), value) {
            (Some(Value::Table(known)), Value::Table(given)) => {
                for (key, value) in given {
                    let label = format!("{section}.{key} = {}", shown(&key, &value));
                    if !known.contains_key(&key) {
                        errors.push(unknown(&label, known));
                        continue;
                    }
                    let mut trial = defaults.clone();
                    set(&mut trial, &section, &key, value.clone());
                    if check(trial, &label, errors) {
                        set(merged, &section, &key, value);
                    }
                }
            }
            (Some(Value::Array(known)), Value::Array(given)) => {
                let template = known.first().and_then(Value::as_table).cloned().unwrap_or_default();
                let mut filled = Vec::new();
                for (i, entry) in given.into_iter().enumerate() {
                    let label = format!("{section}[{i}]");
                    filled.push(fill_entry(&section, &label, &template, entry, defaults, errors));
                }
                merged.insert(section, Value::Array(filled));
            }
            (Some(Value::Array(_)), _) => {
                errors.push(format!("{section}: must be written as [[{section}]]"));
            }
            (Some(_), _) => errors.push(format!("{section}: must be a section, [{section}]")),
            (None, _) => errors.push(unknown(&section, defaults)),
        }
    }
}

/// One entry of `[[channels]]` or `[[endpoints]]`: keys left out take the template's values.
fn fill_entry(
    section: &str,
    label: &str,
    template: &Table,
    entry: Value,
    defaults: &Table,
    errors: &mut Vec<String>,
) -> Value {
    let Value::Table(given) = entry else {
        errors.push(format!("{label}: must be written as [[{section}]]"));
        return Value::Table(template.clone());
    };
    let named = if section == "channels" { "pattern" } else { "path" };
    if !given.contains_key(named) {
        errors.push(format!("{label}.{named} is missing"));
    }
    let mut filled = template.clone();
    for (key, value) in given {
        let label = format!("{label}.{key} = {value}");
        if !template.contains_key(&key) {
            errors.push(unknown(&label, template));
            continue;
        }
        let mut one = template.clone();
        one.insert(key.clone(), value.clone());
        let mut trial = defaults.clone();
        trial.insert(section.to_owned(), Value::Array(vec![Value::Table(one)]));
        if check(trial, &label, errors) {
            filled.insert(key, value);
        }
    }
    Value::Table(filled)
}

/// Overlays a value that came as text, read as the default's type.
pub(super) fn overlay_text(
    merged: &mut Table,
    defaults: &Table,
    label: &str,
    (section, key): (String, String),
    text: &str,
    errors: &mut Vec<String>,
) {
    let Some(Value::Table(known)) = defaults.get(&section) else {
        errors.push(if defaults.contains_key(&section) {
            format!("{label}: [[{section}]] can only be set in a file")
        } else {
            unknown(label, defaults)
        });
        return;
    };
    let value = match known.get(&key) {
        None => return errors.push(unknown(label, known)),
        Some(Value::Integer(_)) => text.parse().map(Value::Integer).map_err(|_| "a whole number"),
        Some(Value::Boolean(_)) => text.parse().map(Value::Boolean).map_err(|_| "true or false"),
        Some(Value::Array(_)) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.into())).collect()))
        }
        Some(_) => Ok(Value::String(text.to_owned())),
    };
    match value {
        Err(allowed) => errors.push(format!("{label}: allowed is {allowed}")),
        Ok(value) => {
            let mut trial = defaults.clone();
            set(&mut trial, &section, &key, value.clone());
            if check(trial, label, errors) {
                set(merged, &section, &key, value);
            }
        }
    }
}

/// Whether the defaults with one key changed still have the right types.
fn check(trial: Table, label: &str, errors: &mut Vec<String>) -> bool {
    match Value::Table(trial).try_into::<Config>() {
        Ok(_) => true,
        Err(e) => {
            errors.push(format!("{label}: {}", e.message().trim()));
            false
        }
    }
}

fn set(table: &mut Table, section: &str, key: &str, value: Value) {
    if let Some(Value::Table(section)) = table.get_mut(section) {
        section.insert(key.to_owned(), value);
    }
}

fn unknown(label: &str, known: &Table) -> String {
    let keys: Vec<&str> = known.keys().map(String::as_str).collect();
    format!("{label}: no such key; known are {}", keys.join(", "))
}

/// A value for an error message; keys stay secret.
fn shown(key: &str, value: &Value) -> String {
    if key == "keys" { "(secret)".into() } else { value.to_string() }
}
