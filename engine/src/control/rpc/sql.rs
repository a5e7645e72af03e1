//! Statements as files have them, with parameters by name, made into what a database takes: text that never holds a value,
//! and the order in which values are bound to it.

/// What a database takes for a parameter, and how it reads text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
    MySql,
}

/// A statement that is ready to be prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sql {
    pub(crate) text: String,
    /// For each value that is bound, in order: the number of its parameter.
    pub(crate) binds: Vec<usize>,
}

/// Why a statement cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SqlError {
    #[error("there is nothing in it")]
    Empty,
    #[error("{0} is not closed")]
    Open(&'static str),
    #[error("allowed is one statement: there is more behind ';'")]
    Several,
    #[error("{0:?}: parameters are written as :name")]
    Positional(String),
    #[error(":{0} is no parameter of it")]
    Unknown(String),
    #[error("the parameter {0:?} is not used in it")]
    Unused(String),
}

/// Reads a statement with these parameters.
pub(crate) fn translate(
    text: &str,
    dialect: Dialect,
    parameters: &[&str],
) -> Result<Sql, SqlError> {
    let mut sql = Sql { text: String::with_capacity(text.len()), binds: Vec::new() };
    let mut used = vec![false; parameters.len()];
    let (mut rest, mut before) = (text, ' ');
    let (mut any, mut ended) = (false, false);
    while let Some(first) = rest.chars().next() {
        let passed = opaque(rest, before, dialect)?;
        let len = match passed {
            Some(Passed { len, is_comment }) => {
                if !is_comment {
                    any = true;
                    if ended {
                        return Err(SqlError::Several);
                    }
                }
                sql.text.push_str(rest.get(..len).unwrap_or_default());
                len
            }
            None => {
                if !first.is_whitespace() && first != ';' {
                    any = true;
                    if ended {
                        return Err(SqlError::Several);
                    }
                }
                ended |= first == ';';
                match parameter(rest, before, dialect)? {
                    Some(name) => {
                        let at = parameters.iter().position(|own| *own == name);
                        let at = at.ok_or_else(|| SqlError::Unknown(name.into()))?;
                        if let Some(used) = used.get_mut(at) {
                            *used = true;
                        }
                        sql.bind(at, dialect);
                        1 + name.len()
                    }
                    None => {
                        // A cast: its second colon begins nothing.
                        let len = if rest.starts_with("::") { 2 } else { first.len_utf8() };
                        sql.text.push_str(rest.get(..len).unwrap_or_default());
                        len
                    }
                }
            }
        };
        let (taken, behind) = rest.split_at_checked(len).unwrap_or((rest, ""));
        before = taken.chars().next_back().unwrap_or(' ');
        rest = behind;
    }
    if !any {
        return Err(SqlError::Empty);
    }
    match used.iter().zip(parameters).find(|(used, _)| !**used) {
        Some((_, name)) => Err(SqlError::Unused((*name).into())),
        None => Ok(sql),
    }
}

impl Sql {
    /// Puts the place of a value behind what is there.
    fn bind(&mut self, parameter: usize, dialect: Dialect) {
        let known = self.binds.iter().position(|own| *own == parameter);
        let sign = match dialect {
            Dialect::MySql => {
                self.binds.push(parameter);
                self.text.push('?');
                return;
            }
            Dialect::Sqlite => '?',
            Dialect::Postgres => '$',
        };
        let number = known.unwrap_or_else(|| {
            self.binds.push(parameter);
            self.binds.len() - 1
        });
        self.text.push(sign);
        self.text.push_str(&(number + 1).to_string());
    }
}

fn is_name_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The name of the parameter that a text begins with.
fn parameter(rest: &str, before: char, dialect: Dialect) -> Result<Option<&str>, SqlError> {
    let mut signs = rest.chars();
    let (first, second) = (signs.next(), signs.next());
    let name = |behind: &'_ str| behind.find(|c| !is_name(c)).unwrap_or(behind.len());
    let positional = match (first, dialect) {
        (Some(':'), _) if second.is_some_and(is_name_start) => {
            let behind = rest.get(1..).unwrap_or_default();
            return Ok(behind.get(..name(behind)));
        }
        (Some('?'), Dialect::Sqlite | Dialect::MySql) => true,
        (Some('$'), Dialect::Postgres) => {
            !is_name(before) && second.is_some_and(|c| c.is_ascii_digit())
        }
        (Some('$' | '@'), Dialect::Sqlite) => !is_name(before) && second.is_some_and(is_name),
        _ => false,
    };
    if positional {
        let behind = rest.get(1..).unwrap_or_default();
        let shown = rest.get(..1 + name(behind)).unwrap_or(rest);
        return Err(SqlError::Positional(shown.into()));
    }
    Ok(None)
}

/// A piece in which nothing is a parameter.
struct Passed {
    len: usize,
    is_comment: bool,
}

/// The string, the quoted name or the comment that a text begins with.
fn opaque(rest: &str, before: char, dialect: Dialect) -> Result<Option<Passed>, SqlError> {
    let bytes = rest.as_bytes();
    let text = |len| Ok(Some(Passed { len, is_comment: false }));
    let comment = |len| Ok(Some(Passed { len, is_comment: true }));
    let line = || rest.find('\n').map_or(rest.len(), |at| at + 1);
    match (bytes.first(), bytes.get(1)) {
        (Some(b'\''), _) => {
            // In PostgreSQL where E stands in front, and not at the end of another word.
            let escapes = dialect == Dialect::MySql
                || dialect == Dialect::Postgres && matches!(before, 'e' | 'E');
            text(quoted(rest, '\'', escapes)?)
        }
        (Some(b'"'), _) => text(quoted(rest, '"', dialect == Dialect::MySql)?),
        (Some(b'`'), _) if dialect != Dialect::Postgres => text(quoted(rest, '`', false)?),
        (Some(b'['), _) if dialect == Dialect::Sqlite => {
            let end = rest.find(']').ok_or(SqlError::Open("a name in brackets"))?;
            text(end + 1)
        }
        // MySQL wants white space behind it: without, it takes one from the other.
        (Some(b'-'), Some(b'-'))
            if dialect != Dialect::MySql
                || bytes.get(2).is_none_or(|byte| byte.is_ascii_whitespace()) =>
        {
            comment(line())
        }
        (Some(b'#'), _) if dialect == Dialect::MySql => comment(line()),
        (Some(b'/'), Some(b'*')) => {
            // MySQL runs what is in these.
            let runs =
                dialect == Dialect::MySql && matches!(bytes.get(2), Some(b'!' | b'+' | b'M'));
            let len = block_comment(rest, dialect == Dialect::Postgres)?;
            Ok(Some(Passed { len, is_comment: !runs }))
        }
        (Some(b'$'), _) if dialect == Dialect::Postgres && !is_name(before) => dollar_quoted(rest),
        _ => Ok(None),
    }
}

/// Length of what stands in quotes, quotes included. A quote is doubled to stand for itself.
fn quoted(rest: &str, quote: char, escapes: bool) -> Result<usize, SqlError> {
    let mut signs = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = signs.next() {
        if escapes && c == '\\' {
            signs.next();
        } else if c == quote {
            if signs.peek().is_some_and(|(_, next)| *next == quote) {
                signs.next();
            } else {
                return Ok(at + c.len_utf8());
            }
        }
    }
    Err(SqlError::Open(if quote == '\'' { "a string" } else { "a name in quotes" }))
}

fn block_comment(rest: &str, nests: bool) -> Result<usize, SqlError> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(pair) = rest.as_bytes().get(at..at + 2) {
        match pair {
            b"/*" if nests || depth == 0 => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Ok(at);
                }
            }
            _ => at += 1,
        }
    }
    Err(SqlError::Open("a comment"))
}

/// `$tag$ … $tag$` of PostgreSQL.
fn dollar_quoted(rest: &str) -> Result<Option<Passed>, SqlError> {
    let behind = rest.get(1..).unwrap_or_default();
    let end = behind.find(|c| !is_name(c)).unwrap_or(behind.len());
    let tag = behind.get(..end).unwrap_or_default();
    let is_tag = behind.get(end..).is_some_and(|rest| rest.starts_with('$'))
        && !tag.starts_with(|c: char| c.is_ascii_digit());
    if !is_tag {
        return Ok(None);
    }
    let mark = format!("${tag}$");
    let body = rest.get(mark.len()..).unwrap_or_default();
    let end = body.find(&mark).ok_or(SqlError::Open("a string in dollars"))?;
    Ok(Some(Passed { len: end + 2 * mark.len(), is_comment: false }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dialect::{MySql, Postgres, Sqlite};

    fn made(text: &str, dialect: Dialect, parameters: &[&str]) -> (String, Vec<usize>) {
        let sql = translate(text, dialect, parameters).unwrap_or_else(|e| panic!("{text}: {e}"));
        (sql.text, sql.binds)
    }

    #[test]
    fn parameters_become_what_each_database_takes() {
        let text = "SELECT * FROM t WHERE a = :a AND b > :b AND c = :a";
        for (dialect, expected, binds) in [
            (Sqlite, "SELECT * FROM t WHERE a = ?1 AND b > ?2 AND c = ?1", vec![0, 1]),
            (Postgres, "SELECT * FROM t WHERE a = $1 AND b > $2 AND c = $1", vec![0, 1]),
            (MySql, "SELECT * FROM t WHERE a = ? AND b > ? AND c = ?", vec![0, 1, 0]),
        ] {
            assert_eq!(made(text, dialect, &["a", "b"]), (expected.into(), binds));
        }
        // As they are used, not as they are listed.
        assert_eq!(
            made("SELECT :b, :a", Postgres, &["a", "b"]),
            ("SELECT $1, $2".into(), vec![1, 0])
        );
    }

    #[test]
    fn what_only_looks_like_a_parameter_stays() {
        for (dialect, text) in [
            (Sqlite, "SELECT ':a', \":a\", `:a`, [:a] -- :a"),
            (Sqlite, "SELECT 'it''s :a' /* :a /* */ ;"),
            (Sqlite, "SELECT 'back\\' || 'x :a'"),
            (Postgres, "SELECT a::text, b::int[] FROM t"),
            (Postgres, "SELECT E'it\\'s :a', 'back\\' || ':a'"),
            (Postgres, "SELECT $$ :a ; $$, $q$ :a $$ $q$ /* :a /* :a */ :a */"),
            (Postgres, "SELECT x ? 'k', a[1:2], t$1 FROM t$1"),
            (MySql, "SELECT 'it\\'s :a', \"say \\\" :a\" # :a"),
            (MySql, "SELECT @x := 1, @@version -- :a"),
            (MySql, "SELECT 1 /* :a */;\n-- the end"),
        ] {
            assert_eq!(made(text, dialect, &[]), (text.into(), vec![]));
        }
        assert_eq!(made("SELECT :a::int", Postgres, &["a"]).0, "SELECT $1::int");
        assert_eq!(made("SELECT 2--:a", MySql, &["a"]).0, "SELECT 2--?");
        assert_eq!(made("SELECT :größe", Sqlite, &["größe"]).0, "SELECT ?1");
    }

    #[test]
    fn statements_that_cannot_be_used_are_refused() {
        for (dialect, text, why) in [
            (Sqlite, "", "there is nothing in it"),
            (Sqlite, " -- only this\n /* and */ ;", "there is nothing in it"),
            (Sqlite, "SELECT 'open", "a string is not closed"),
            (Sqlite, "SELECT \"open", "a name in quotes is not closed"),
            (Sqlite, "SELECT [open", "a name in brackets is not closed"),
            (Postgres, "SELECT $q$ open $$", "a string in dollars is not closed"),
            (Postgres, "SELECT 1 /* /* */", "a comment is not closed"),
            (
                Sqlite,
                "SELECT :a; DROP TABLE t",
                "allowed is one statement: there is more behind ';'",
            ),
            (Postgres, "SELECT 1; 'x'", "allowed is one statement: there is more behind ';'"),
            (
                MySql,
                "SELECT 1; /*! DROP TABLE t */",
                "allowed is one statement: there is more behind ';'",
            ),
            (Sqlite, "SELECT ?", "\"?\": parameters are written as :name"),
            (Sqlite, "SELECT ?1", "\"?1\": parameters are written as :name"),
            (Sqlite, "SELECT $a", "\"$a\": parameters are written as :name"),
            (Sqlite, "SELECT @a", "\"@a\": parameters are written as :name"),
            (Postgres, "SELECT $1", "\"$1\": parameters are written as :name"),
            (MySql, "SELECT ?", "\"?\": parameters are written as :name"),
            (Sqlite, "SELECT :b, :a", ":b is no parameter of it"),
            (Sqlite, "SELECT ':a'", "the parameter \"a\" is not used in it"),
        ] {
            let told = translate(text, dialect, &["a"]).unwrap_err().to_string();
            assert!(
                told == why || told.contains("\"a\" is not used") && text.is_empty(),
                "{text}: {told}"
            );
        }
    }
}
