//! One section of a configuration that somebody else keeps.

use std::collections::BTreeSet;

/// Words that begin a section, wherever they stand on their line.
const SECTIONS: [&str; 20] = [
    "acme",
    "backend",
    "cache",
    "crt-store",
    "defaults",
    "dynamic-update",
    "fcgi-app",
    "frontend",
    "global",
    "http-errors",
    "listen",
    "log-forward",
    "log-profile",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
];

/// A file without the section that was to be replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSection {
    /// There is none of this name.
    #[error("it has no section `backend {0}`; its backends are: {1}")]
    Missing(String, String),
    /// There is more than one.
    #[error("it has more than one section `backend {0}`")]
    Twice(String),
}

/// The name behind `backend`, if this line begins a section with one.
fn backend_of(line: &str) -> Option<&str> {
    let mut words = line.split_ascii_whitespace();
    (words.next()? == "backend").then(|| words.next().unwrap_or_default())
}

fn begins_section(line: &str) -> bool {
    line.split_ascii_whitespace().next().is_some_and(|word| SECTIONS.contains(&word))
}

/// The text with `section` in the place of its `backend NAME`. Blank lines and comments in front of the next section are that one's
/// and stay.
pub fn replace_backend(text: &str, name: &str, section: &str) -> Result<String, NoSection> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut found = lines.iter().enumerate().filter(|(_, line)| backend_of(line) == Some(name));
    let Some((start, _)) = found.next() else {
        let names: Vec<&str> = lines.iter().filter_map(|line| backend_of(line)).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(NoSection::Missing(name.to_owned(), names));
    };
    if found.next().is_some() {
        return Err(NoSection::Twice(name.to_owned()));
    }
    let behind = lines.get(start + 1..).unwrap_or_default();
    let len = behind.iter().position(|line| begins_section(line));
    let own = behind.get(..len.unwrap_or(behind.len())).unwrap_or_default();
    let is_apart = |line: &&&str| {
        let line = line.trim();
        line.is_empty() || (line.starts_with('#') && len.is_some())
    };
    let kept = own.iter().rev().take_while(is_apart).count();
    let mut whole: String = lines.iter().take(start).copied().collect();
    whole.push_str(section);
    if !section.ends_with('\n') {
        whole.push('\n');
    }
    whole.extend(behind.iter().skip(own.len() - kept).copied());
    Ok(whole)
}

/// Names of the servers that a configuration has in its `backend NAME`.
pub(super) fn servers_of<'a>(text: &'a str, name: &str) -> BTreeSet<&'a str> {
    let mut lines = text.lines().skip_while(|line| backend_of(line) != Some(name));
    let own = {
        lines.next();
        lines
    }
    .take_while(|line| !begins_section(line));
    own.filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "server").then(|| words.next()).flatten()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "global\n    maxconn 10\n\nfrontend f\n    default_backend ws_nodes\n\n  backend ws_nodes # ours\n    \
                        balance roundrobin\n    # server old\n    server a 1.2.3.4:5 check\n\n# The other one.\nbackend other\n    server b \
                        1.2.3.4:6\n";

    #[test]
    fn one_section_changes_and_everything_else_stays() {
        let replaced = replace_backend(FILE, "ws_nodes", "backend ws_nodes\n    new\n").unwrap();
        let (before, _) = FILE.split_once("  backend ws_nodes").unwrap();
        let (_, behind) = FILE.split_once("check\n").unwrap();
        assert_eq!(replaced, format!("{before}backend ws_nodes\n    new\n{behind}"));
        let again = replace_backend(&replaced, "ws_nodes", "backend ws_nodes\n    new\n").unwrap();
        assert_eq!(again, replaced);
        assert_eq!(servers_of(FILE, "ws_nodes"), BTreeSet::from(["a"]));
        assert_eq!(servers_of(FILE, "other"), BTreeSet::from(["b"]));
        assert!(servers_of(FILE, "none").is_empty());
        let last = replace_backend(FILE, "other", "backend other\n    new").unwrap();
        assert!(last.ends_with("# The other one.\nbackend other\n    new\n"), "{last}");
    }

    #[test]
    fn a_section_that_is_not_there_is_not_made() {
        let missing = replace_backend(FILE, "ws_node", "x").unwrap_err().to_string();
        assert!(missing.contains("backend ws_node`") && missing.contains("ws_nodes, other"));
        assert!(replace_backend("", "a", "x").unwrap_err().to_string().contains("none"));
        let twice = format!("{FILE}{FILE}");
        assert!(
            replace_backend(&twice, "other", "x")
                .unwrap_err()
                .to_string()
                .contains("more than one")
        );
    }
}
