//! `docs/CONFIG.md`, made of the defaults, their comments and what each key may be.

use std::fmt::Write as _;

use super::keys;
use super::merge::with_examples;

const HEAD: &str = "\
# Configuration

Made by `ringfeed default-config --markdown` from `config/default.toml`; a test fails when the two differ.

A file needs only what it changes: `ringfeed serve --config my.toml`. Stronger than the file is the environment,
`RINGFEED_SECTION__KEY=value`; stronger than that are flags, `--set section.key=value`, and `--host` and `--port` for
`server.listen`. Lists are written with commas there: `RINGFEED_API__KEYS=a,b`. Sections in double brackets, of
which there may be many, can only be set in a file. Unknown keys are refused. `ringfeed check-config` tells everything that is wrong at once, with file and
line; a value that is secret is shown nowhere.
";

/// Every key with its default, what it may be and what it means, as a page in Markdown.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    let text = with_examples();
    let mut comment = String::new();
    let mut section = "";
    for line in text.lines() {
        if let Some(text) = line.strip_prefix('#') {
            comment.push_str(text);
        } else if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
            let _ = write!(page, "\n## `{line}`\n\n");
            if !comment.is_empty() {
                let _ = write!(page, "{}\n\n", comment.trim());
            }
            page.push_str("| key | default | allowed | |\n|---|---|---|---|\n");
            comment.clear();
        } else if let Some((key, default)) = line.split_once(" = ") {
            let allowed = keys::allowed(section, key).map(|allowed| allowed.to_string());
            let allowed = allowed.as_deref().unwrap_or_default();
            let allowed =
                allowed.trim_start_matches("allowed are ").trim_start_matches("allowed is ");
            let meaning = comment.trim().replace('|', "\\|");
            let _ = writeln!(page, "| `{key}` | `{default}` | {allowed} | {meaning} |");
            comment.clear();
        } else {
            // What stands above an empty line is about the file as a whole.
            comment.clear();
        }
    }
    page
}
