//! Overlaying the defaults key by key, so that each wrong key is told and the others are still looked at.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::LazyLock;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::DEFAULT_TOML;
use super::file;
use super::keys::{self, printable};

/// Largest file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Variables whose names begin like the configuration's and that are read elsewhere.
const NOT_CONFIG: [&str; 8] = [
    "RINGFEED_API_KEY",
    "RINGFEED_DROP_DIR",
    "RINGFEED_CONFIG",
    "RINGFEED_BIN_DIR",
    "RINGFEED_DEMO_SECONDS",
    "RINGFEED_REDIS_URL",
    "RINGFEED_REGISTRY",
    "RINGFEED_REGISTRY_KEY",
];

static DEFAULTS: LazyLock<Table> =
    LazyLock::new(|| DEFAULT_TOML.parse().expect("the embedded defaults are valid TOML"));

/// The defaults with what they show as an example: in sections that have no entry unless a file says so, and of which
/// the defaults have the values that an entry leaves out.
static EXAMPLES: LazyLock<Table> =
    LazyLock::new(|| with_examples().parse().expect("the examples are valid TOML"));

/// The text of the defaults, what is commented out included: behind `#` a comment has a space, and an example none.
pub(super) fn with_examples() -> String {
    let shown = |line: &'static str| match line.strip_prefix('#') {
        Some(example) if !example.is_empty() && !example.starts_with(' ') => example,
        _ => line,
    };
    DEFAULT_TOML.lines().flat_map(|line| [shown(line), "\n"]).collect()
}

pub(super) fn default_table() -> Table {
    let mut table = DEFAULTS.clone();
    for section in EXAMPLES.keys() {
        // Only of entries there may be none.
        table.entry(section).or_insert_with(|| Value::Array(Vec::new()));
    }
    table
}

/// A file that is TOML, and where in it things are.
pub(super) struct File {
    name: String,
    table: Table,
    /// Line of each key, by the name it has in messages.
    lines: BTreeMap<String, usize>,
}

impl File {
    /// Reads a file; or everything that keeps it from being TOML. The text itself is not shown: it may
    /// hold secrets.
    pub(super) fn read(path: &Path) -> Result<File, Vec<String>> {
        let name = printable(&path.to_string_lossy());
        let text =
            file::read_text(path, FILE_BYTES_MAX).map_err(|e| vec![format!("{name}: {e}")])?;
        let line = |at: usize| 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count();
        let (document, errors) = DeTable::parse_recoverable(&text);
        if !errors.is_empty() {
            let told = errors.iter().map(|e| match e.span() {
                Some(span) => format!("{name}:{}: {}", line(span.start), printable(e.message())),
                None => format!("{name}: {}", printable(e.message())),
            });
            return Err(told.collect());
        }
        let mut lines = BTreeMap::new();
        for (section, value) in document.get_ref() {
            let section_name = section.get_ref().to_string();
            lines.insert(section_name.clone(), line(section.span().start));
            match value.get_ref() {
                DeValue::Table(keys) => place(&mut lines, &section_name, keys, &line),
                DeValue::Array(entries) => {
                    for (i, entry) in entries.iter().enumerate() {
                        let label = format!("{section_name}[{i}]");
                        lines.insert(label.clone(), line(entry.span().start));
                        if let DeValue::Table(keys) = entry.get_ref() {
                            place(&mut lines, &label, keys, &line);
                        }
                    }
                }
                _ => {}
            }
        }
        let table = text.parse::<Table>().map_err(|e| vec![format!("{name}: {}", e.message())])?;
        Ok(File { name, table, lines })
    }

    /// `label` with file and line in front.
    fn at(&self, label: &str) -> String {
        match self.lines.get(label) {
            Some(line) => format!("{}:{line}: {}", self.name, printable(label)),
            None => format!("{}: {}", self.name, printable(label)),
        }
    }

    /// Overlays what the file says.
    pub(super) fn overlay(self, merged: &mut Table, errors: &mut Vec<String>) {
        for (section, value) in &self.table {
            match (merged.get_mut(section), value) {
                (Some(Value::Table(keys)), Value::Table(given)) => {
                    self.overlay_keys(keys, section, section, given, errors);
                }
                (Some(Value::Array(entries)), Value::Array(given)) => {
                    let template = default_entry(section);
                    *entries = Vec::new();
                    for (i, entry) in given.iter().enumerate() {
                        let label = format!("{section}[{i}]");
                        entries.extend(self.entry(section, &label, &template, entry, errors));
                    }
                }
                (Some(Value::Array(_)), _) => {
                    errors
                        .push(format!("{}: it must be written as [[{section}]]", self.at(section)));
                }
                (Some(_), _) => {
                    errors.push(format!("{}: it must be a section, [{section}]", self.at(section)));
                }
                (None, _) => {
                    errors.push(format!("{}: {}", self.at(section), keys::unknown(None)));
                }
            }
        }
    }

    /// One entry of `[[channels]]` or its like: keys left out take the template's values. `None` for one that
    /// does not say what it is about.
    fn entry(
        &self,
        section: &str,
        label: &str,
        template: &Table,
        entry: &Value,
        errors: &mut Vec<String>,
    ) -> Option<Value> {
        let Value::Table(given) = entry else {
            errors.push(format!("{}: it must be written as [[{section}]]", self.at(label)));
            return None;
        };
        let mut filled = template.clone();
        self.overlay_keys(&mut filled, section, label, given, errors);
        let needed = needed(section);
        for missing in needed.iter().filter(|&&key| !given.contains_key(key)) {
            errors.push(format!("{}: {missing} is missing", self.at(label)));
        }
        // A value that is not allowed was told before.
        let fits = |&key: &&str| {
            let allowed = keys::allowed(section, key);
            given.get(key).zip(allowed).is_some_and(|(value, allowed)| allowed.check(value).is_ok())
        };
        needed.iter().all(fits).then_some(Value::Table(filled))
    }

    /// Overlays the keys of one section or entry, which messages call `label`.
    fn overlay_keys(
        &self,
        keys: &mut Table,
        section: &str,
        label: &str,
        given: &Table,
        errors: &mut Vec<String>,
    ) {
        for (key, value) in given {
            overlay_key(keys, section, &self.at(&format!("{label}.{key}")), (key, value), errors);
        }
    }
}

/// Overlays one key, which messages call `at`.
pub(super) fn overlay_key(
    keys: &mut Table,
    section: &str,
    at: &str,
    (key, value): (&str, &Value),
    errors: &mut Vec<String>,
) {
    match keys::allowed(section, key) {
        // Whether the value is a secret is not known.
        None => errors.push(format!("{at}: {}", keys::unknown(Some(section)))),
        Some(allowed) => match allowed.check(value) {
            Ok(()) => {
                keys.insert(key.to_owned(), value.clone());
            }
            Err(wanted) => errors.push(format!("{at} = {}: {wanted}", allowed.shown(value))),
        },
    }
}

/// Notes the lines of the keys of one section or entry.
fn place(
    lines: &mut BTreeMap<String, usize>,
    label: &str,
    keys: &DeTable<'_>,
    line: &impl Fn(usize) -> usize,
) {
    for key in keys.keys() {
        lines.insert(format!("{label}.{}", key.get_ref()), line(Spanned::span(key).start));
    }
}

/// Keys without which an entry is about nothing.
fn needed(section: &str) -> &'static [&'static str] {
    match section {
        "endpoints" => &["path"],
        "channels" => &["pattern"],
        "permissions" => &["who", "channels"],
        "api_keys" | "databases" => &["name"],
        "redis_channels" => &["name", "channel"],
        "rpc_methods" => &["name", "url", "allow"],
        _ => &[],
    }
}

/// What an entry is that says nothing.
pub(super) fn default_entry(section: &str) -> Table {
    let entries = EXAMPLES.get(section).and_then(Value::as_array);
    entries.and_then(|all| all.first()?.as_table().cloned()).unwrap_or_default()
}

/// Overlays one variable of the environment, if it is one of ours.
pub(super) fn overlay_variable(
    merged: &mut Table,
    name: &OsStr,
    value: &OsStr,
    errors: &mut Vec<String>,
) {
    if !name.to_string_lossy().starts_with("RINGFEED_") {
        return;
    }
    let label = printable(&name.to_string_lossy());
    let Some((name, path)) = name.to_str().and_then(|name| Some((name, name.get(9..)?))) else {
        return errors.push(format!("{label}: its name is not UTF-8"));
    };
    let Some((section, key)) = path.split_once("__") else {
        if nearly_a_key(name) {
            errors.push(format!("{label}: allowed are names of the form RINGFEED_SECTION__KEY"));
        }
        return;
    };
    match value.to_str() {
        Some(value) => {
            let (section, key) = (section.to_lowercase(), key.to_lowercase());
            overlay_text(merged, &label, &section, &key, value, errors);
        }
        None => errors.push(format!("{label}: its value is not UTF-8")),
    }
}

/// Whether a name is that of a key, with an underscore too few. Others begin like a section, too, and
/// are nobody's mistake: for a service named `ringfeed-api` Kubernetes sets `RINGFEED_API_PORT` and more.
fn nearly_a_key(name: &str) -> bool {
    let path = name.strip_prefix("RINGFEED_").unwrap_or_default().to_lowercase();
    keys::KEYS.iter().any(|(key, _)| key.replacen('.', "_", 1) == path)
}

/// Whether a variable looks as if it were ours and means nothing.
pub(super) fn is_stray(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        name.starts_with("RINGFEED_") && !name.contains("__") && !NOT_CONFIG.contains(&name)
    })
}

/// Overlays `section.key=value`.
pub(super) fn overlay_flag(merged: &mut Table, flag: &str, errors: &mut Vec<String>) {
    let Some((path, value)) = flag.split_once('=') else {
        let label = printable(flag);
        return errors.push(format!("--set {label}: allowed is SECTION.KEY=VALUE"));
    };
    let path = path.trim();
    let label = format!("--set {}", printable(path));
    match path.split_once('.') {
        Some((section, key)) => overlay_text(merged, &label, section, key, value.trim(), errors),
        None => errors.push(format!("{label}=…: allowed is SECTION.KEY=VALUE")),
    }
}

/// Overlays a value that came as text.
fn overlay_text(
    merged: &mut Table,
    label: &str,
    section: &str,
    key: &str,
    text: &str,
    errors: &mut Vec<String>,
) {
    let keys = match merged.get_mut(section) {
        Some(Value::Table(keys)) => keys,
        Some(_) => return errors.push(format!("{label}: [[{section}]] can only be set in a file")),
        None => return errors.push(format!("{label}: {}", keys::unknown(None))),
    };
    let Some(allowed) = keys::allowed(section, key) else {
        return errors.push(format!("{label}: {}", keys::unknown(Some(section))));
    };
    match allowed.parse(text) {
        Ok(value) => {
            keys.insert(key.to_owned(), value);
        }
        Err(wanted) => {
            let shown = allowed.shown(&Value::String(text.to_owned()));
            errors.push(format!("{label} = {shown}: {wanted}"));
        }
    }
}
