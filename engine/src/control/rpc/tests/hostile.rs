//! Values that would change a statement if they ever became a part of it, or that are not what they are said to be.

use ringfeed_protocol::{CallError, ErrorCode};
use serde_json::{Value as Json, json};

use super::Site;

/// How a database gives a value back as it came.
pub(super) struct Echo {
    /// Of a parameter `:a` of each type: what is selected.
    text: &'static str,
    int: &'static str,
    float: &'static str,
    json: &'static str,
    bytes: &'static str,
    /// What there is in the database, as one text.
    everything: &'static str,
    /// Texts cannot hold U+0000, nor can JSON.
    no_null: bool,
}

impl Echo {
    pub(super) const SQLITE: Echo = Echo {
        text: ":a",
        int: ":a",
        float: ":a",
        json: "json(:a)",
        bytes: ":a",
        everything: "SELECT (SELECT group_concat(name || sql) FROM sqlite_master) || \
                     (SELECT group_concat(n || t) FROM canary)",
        no_null: false,
    };
    pub(super) const POSTGRES: Echo = Echo {
        text: ":a::text",
        int: ":a::bigint",
        float: ":a::float8",
        json: ":a::jsonb",
        bytes: ":a::bytea",
        everything: "SELECT (SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_tables) || \
                     (SELECT string_agg(n || t, ',' ORDER BY n) FROM canary) || \
                     (SELECT count(*)::text FROM pg_roles)",
        no_null: true,
    };
}

/// What would end a string, a statement or a comment, or begin one.
const PIECES: &[&str] = &[
    "'",
    "''",
    "\"",
    "\\",
    "\\'",
    "\\\"",
    "`",
    "$$",
    "$q$",
    "$1",
    "?",
    "?1",
    ":a",
    "::text",
    "@a",
    ";",
    "--",
    "-- ",
    "#",
    "/*",
    "*/",
    "/*!",
    "%",
    "_",
    "%s",
    "%00",
    "\0",
    "\u{1}",
    "\u{7f}",
    "\t",
    "\n",
    "\r\n",
    "\u{a0}",
    "\u{2019}",
    "\u{ff07}",
    "\u{2bc}",
    "\u{202e}",
    "\u{feff}",
    "\u{fffd}",
    "\u{10ffff}",
    "\u{1f600}",
    "e\u{301}",
    "\u{130}",
    "NULL",
    "null",
    "0x27",
    "CHAR(39)",
    "' OR '1'='1",
    "' OR 1=1 --",
    "'; DROP TABLE canary; --",
    "'); DELETE FROM canary; --",
    "' UNION SELECT 1 --",
    "1; UPDATE canary SET t = 'x'",
    "' || (SELECT t FROM canary) || '",
    "'; COMMIT; DROP TABLE canary; --",
    "\\'; DROP TABLE canary; --",
    "$$; DROP TABLE canary; $$",
    "E'\\047'",
    "x'; ATTACH 'x.db' AS x; --",
    "'; COPY canary TO PROGRAM 'id'; --",
    "1 AND pg_sleep(0)",
    "' AND load_extension('x') --",
    "/**/OR/**/1=1",
    "\u{bf}' OR 1=1",
    "admin'/*",
    "{\"a\":1}",
    "[1]",
    "true",
    "-1",
    "1e9",
    "../../etc/passwd",
];

/// Puts a piece where it may do harm.
const AROUND: &[fn(&str) -> String] = &[
    |piece| piece.to_owned(),
    |piece| format!("a{piece}b"),
    |piece| piece.repeat(50),
    |piece| format!("'{piece}'"),
    |piece| format!("{piece}\0{piece}"),
    |piece| format!("{piece}{}", "x".repeat(20_000)),
    |piece| format!("{}\\{piece}", "\u{1f600}".repeat(100)),
    |piece| format!("\u{feff}{piece} -- "),
];

/// What the type of a parameter has to refuse or to take, whatever it is.
fn odd_values() -> Vec<Json> {
    let numbers = [
        "0",
        "-0",
        "-0.0",
        "1",
        "-1",
        "1.5",
        "1e400",
        "-1e400",
        "1e308",
        "5e-324",
        "1e-400",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "-9223372036854775809",
        "18446744073709551615",
        "18446744073709551616",
        "2147483648",
        "9007199254740993",
        "0.1",
        "123456789012345678901234567890",
    ];
    let mut values: Vec<Json> =
        numbers.iter().filter_map(|number| serde_json::from_str(number).ok()).collect();
    values.extend([
        Json::Null,
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!([1, "a", null]),
        json!({"a": {"b": "'"}}),
        json!(""),
        json!(" "),
        json!("1"),
        json!("true"),
        json!("AAEC"),
        json!("not base64!"),
        json!("2030-01-31T12:00:00Z"),
        json!("9999-12-31T23:59:59Z"),
        json!("0000-01-01T00:00:00Z"),
        json!("2030-13-01T00:00:00Z"),
        json!("infinity"),
        json!("NaN"),
    ]);
    values
}

/// Calls with all of them. Each comes back as it went, or is refused as what it is; and nothing has changed. Returns how many
/// there were.
pub(super) async fn try_all(site: &Site, echo: Echo) -> usize {
    site.write("CREATE TABLE canary (n INTEGER, t TEXT)").await;
    site.write("INSERT INTO canary VALUES (1, 'one'), (2, 'two')").await;
    site.write("CREATE TABLE texts (t TEXT)").await;
    let look = async || site.ask(echo.everything).await.unwrap();
    let before = look().await;
    let mut count = 0;
    let select = |of: &str, what: &str| {
        let sql = format!("SELECT {what} AS a");
        let params = format!("params = [{{ name = \"a\", type = {of:?}, max_length = 30000 }}]");
        let params = match of {
            "int" | "float" | "bool" | "timestamp" => params.replace(", max_length = 30000", ""),
            _ => params,
        };
        site.statement(&format!("sql = {sql:?}\n{params}\nresult = \"value\""))
    };
    let texts = PIECES.iter().flat_map(|piece| AROUND.iter().map(move |around| around(piece)));
    let texts: Vec<String> = texts.chain([String::new(), "x".repeat(30_001)]).collect();
    let own = select("text", echo.text);
    let insert = site.statement(
        "sql = \"INSERT INTO texts VALUES (:a)\"\nwrite = true\nparams = [{ name = \"a\", type = \"text\" }]",
    );
    let find = site.statement(
        "sql = \"SELECT count(*) AS n FROM texts WHERE t = :a\"\nresult = \"value\"\nparams = [{ name = \"a\", type = \"text\" }]",
    );
    for text in &texts {
        count += 1;
        let given = json!({ "a": text });
        let refused = text.chars().count() > 30_000 || echo.no_null && text.contains('\0');
        match site.call(&own, &given).await {
            Ok(back) => assert!(back == **text && !refused, "{text:?} came back as {back}"),
            Err(e) => assert!(refused && e.code() == ErrorCode::BadParams, "{text:?}: {e}"),
        }
        if !refused {
            let written = site.call(&insert, &given).await.unwrap();
            assert_eq!(written, json!({"affected": 1}), "{text:?}");
            let found = site.call(&find, &given).await.unwrap();
            // Pieces that are put together differently may be the same.
            assert!(found.as_u64().is_some_and(|found| found >= 1), "{text:?}: {found}");
        }
        // Neither a name of a parameter nor of anything else.
        let told = site.call(&own, &json!({ "a": "x", (text.clone()): 1 })).await;
        assert_eq!(told.map_err(|e| e.code()), Err(ErrorCode::BadParams), "{text:?}");
    }
    for (of, what) in [
        ("int", echo.int),
        ("float", echo.float),
        ("json", echo.json),
        ("bytes", echo.bytes),
        ("text", echo.text),
        ("bool", ":a"),
        ("timestamp", ":a"),
    ] {
        let own = select(of, what);
        for value in odd_values() {
            count += 1;
            let told = site.call(&own, &json!({ "a": value })).await;
            is_itself_or_refused(of, &value, told);
        }
    }
    let texts: u64 = texts.len().try_into().unwrap();
    let kept = site.ask("SELECT count(*) AS n FROM texts").await.unwrap();
    assert!(kept[0]["n"].as_u64().is_some_and(|kept| kept <= texts), "{kept}");
    site.write("DELETE FROM texts").await;
    assert_eq!(look().await, before, "something has changed");
    count
}

fn is_itself_or_refused(of: &str, value: &Json, told: Result<Json, CallError>) {
    let back = match told {
        Ok(back) => back,
        Err(e) => {
            assert_eq!(e.code(), ErrorCode::BadParams, "{of} {value}: {e}");
            return;
        }
    };
    let same = match of {
        "int" => value.is_i64() || value.is_null(),
        "float" => value.is_number() && value.as_f64() == back.as_f64() || value.is_null(),
        "bool" => (value.is_boolean() || value.is_null()) && back != json!("true"),
        "timestamp" => value.as_str().is_some_and(|text| text.ends_with('Z')) || value.is_null(),
        "bytes" | "text" => value.is_string() || value.is_null(),
        // SQLite has no type for it.
        _ => true,
    };
    assert!(same, "{of} {value} came back as {back}");
    if matches!(of, "int" | "bytes" | "text") {
        assert_eq!(back, *value, "{of}");
    }
}
