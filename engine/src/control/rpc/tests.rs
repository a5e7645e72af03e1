//! Statements on real databases.

mod hostile;
mod servers;

use std::time::Duration;

use ringfeed_protocol::{CallError, ErrorCode};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::database::{Database, Place};
use super::methods::Methods;
use super::params;
use super::statement::{Entry, Statement};
use crate::config::{self, Config, Secret, Sources};
use servers::{MariaDb, Postgres};

/// How long a statement may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A database, and statements for it.
struct Site {
    place: Place,
    database: Database,
    bytes_max: usize,
}

impl Site {
    fn new(url: &str, pool_max: u32, acquire_timeout_ms: u32) -> Site {
        let config = config::Database {
            name: "main".into(),
            url: Secret(url.into()),
            url_env: Secret(Vec::new()),
            url_file: String::new(),
            pool_max,
            acquire_timeout_ms,
            statement_timeout_ms: 60_000,
        };
        let place = Place::new(&config).unwrap();
        let database = Database::new(&place);
        Site { place, database, bytes_max: 1 << 20 }
    }

    fn statement(&self, toml: &str) -> Statement {
        let text =
            format!("name = \"s\"\ndescription = \"\"\ndatabase = \"main\"\nallow = []\n{toml}");
        let entry: Entry = toml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        Statement::new(entry, 0, &self.place).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    /// What a call of a statement gives.
    async fn call(&self, statement: &Statement, given: &Json) -> Result<Json, CallError> {
        let values = params::read(&statement.params, Some(&given.to_string()))?;
        let deadline = Instant::now() + statement.timeout;
        let ran = self.database.run(statement, &values, deadline, self.bytes_max).await;
        ran.map(|text| serde_json::from_str(&text).unwrap()).map_err(|trouble| trouble.told())
    }

    async fn ask(&self, sql: &str) -> Result<Json, CallError> {
        self.call(&self.statement(&format!("sql = {sql:?}")), &json!({})).await
    }

    async fn write(&self, sql: &str) {
        let statement = self.statement(&format!("sql = {sql:?}\nwrite = true"));
        self.call(&statement, &json!({})).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
}

/// A file that is a database, in a directory of its own.
fn sqlite() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("test.db").display());
    (dir, url)
}

fn code(result: Result<Json, CallError>) -> ErrorCode {
    result.unwrap_err().code()
}

/// Endless work of each database, and what shows which connection it is on.
struct Ways {
    endless: &'static str,
    connection: Option<&'static str>,
}

const SQLITE: Ways = Ways {
    endless: "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c",
    connection: None,
};
const POSTGRES: Ways =
    Ways { endless: "SELECT pg_sleep(3600)", connection: Some("SELECT pg_backend_pid() AS pid") };
const MARIADB: Ways =
    Ways { endless: "SELECT SLEEP(3600)", connection: Some("SELECT CONNECTION_ID() AS id") };

/// A statement out of time is stopped, and its connection serves the next one.
async fn stops(url: &str, ways: &Ways) {
    let site = Site::new(url, 1, 60_000);
    let on = async || match ways.connection {
        Some(sql) => site.ask(sql).await.unwrap(),
        None => Json::Null,
    };
    let before = on().await;
    let endless = site.statement(&format!("sql = {:?}\ntimeout_ms = 100", ways.endless));
    assert_eq!(code(site.call(&endless, &json!({})).await), ErrorCode::TimedOut);
    assert_eq!(site.ask("SELECT 1 AS one").await.unwrap(), json!([{"one": 1}]));
    assert_eq!(on().await, before, "it is the same connection");
}

/// With every connection taken, a call has its answer all the same.
async fn is_refused_without_a_connection(url: &str, ways: &Ways) {
    let site = Site::new(url, 1, 50);
    // So that it is the other one that waits.
    site.ask("SELECT 1 AS one").await.unwrap();
    let endless = site.statement(&format!("sql = {:?}\ntimeout_ms = 2000", ways.endless));
    let nothing = json!({});
    let long = site.call(&endless, &nothing);
    let refused = async {
        tokio::task::yield_now().await;
        site.ask("SELECT 2 AS two").await
    };
    let (long, refused) = tokio::join!(long, refused);
    assert_eq!(code(long), ErrorCode::TimedOut);
    let told = refused.unwrap_err();
    assert_eq!(told.to_string(), "no connection to the database is free; try again later");
    assert_eq!(site.ask("SELECT 3 AS three").await.unwrap(), json!([{"three": 3}]));
}

/// What is said to read cannot write, however it is worded.
async fn only_reads(url: &str, wordings: &[&str]) {
    let site = Site::new(url, 2, 60_000);
    site.write("CREATE TABLE IF NOT EXISTS kept (n INTEGER)").await;
    site.write("DELETE FROM kept").await;
    site.write("INSERT INTO kept VALUES (1)").await;
    for sql in wordings {
        let told = site.ask(sql).await.unwrap_err();
        assert_eq!(told.code(), ErrorCode::Failed, "{sql}: {told}");
        assert_eq!(site.ask("SELECT n FROM kept").await.unwrap(), json!([{"n": 1}]), "{sql}");
    }
    let insert = site.statement("sql = \"INSERT INTO kept VALUES (2)\"\nwrite = true");
    assert_eq!(site.call(&insert, &json!({})).await.unwrap(), json!({"affected": 1}));
}

/// Results have their shapes, and their limits.
async fn gives_what_it_says(url: &str) {
    let mut site = Site::new(url, 1, 60_000);
    site.write("CREATE TABLE shaped (n INTEGER, t VARCHAR(10))").await;
    site.write("INSERT INTO shaped VALUES (1, 'a'), (2, NULL), (3, 'c')").await;
    let select = "sql = \"SELECT n, t FROM shaped ORDER BY n\"";
    for (more, expected) in [
        ("", json!([{"n": 1, "t": "a"}, {"n": 2, "t": null}, {"n": 3, "t": "c"}])),
        ("result = \"row\"", json!({"n": 1, "t": "a"})),
        ("result = \"value\"", json!(1)),
        ("rows_max = 3", json!([{"n": 1, "t": "a"}, {"n": 2, "t": null}, {"n": 3, "t": "c"}])),
    ] {
        let statement = site.statement(&format!("{select}\n{more}"));
        assert_eq!(site.call(&statement, &json!({})).await.unwrap(), expected, "{more}");
    }
    for (sql, shape, expected) in [
        ("SELECT n FROM shaped WHERE n > 9", "rows", json!([])),
        ("SELECT n FROM shaped WHERE n > 9", "row", Json::Null),
        ("SELECT n FROM shaped WHERE n > 9", "value", Json::Null),
    ] {
        let statement = site.statement(&format!("sql = {sql:?}\nresult = {shape:?}"));
        assert_eq!(site.call(&statement, &json!({})).await.unwrap(), expected, "{sql} {shape}");
    }
    let few = site.statement(&format!("{select}\nrows_max = 2"));
    let told = site.call(&few, &json!({})).await.unwrap_err();
    assert_eq!(told, CallError::failed("there are more than 2 rows"));
    let twice = site.ask("SELECT n, n FROM shaped").await.unwrap_err();
    assert_eq!(twice, CallError::failed("the statement failed"));
    // Without the database's own words.
    let told = site.ask("SELECT hush FROM nowhere").await.unwrap_err();
    assert_eq!(told, CallError::failed("the statement failed"));
    site.bytes_max = 20;
    let told = site.call(&site.statement(select), &json!({})).await.unwrap_err();
    assert_eq!(told, CallError::failed("the result is longer than 20 bytes"));
}

#[tokio::test]
async fn sqlite_does_what_statements_say_and_no_more() {
    let (_dir, url) = sqlite();
    gives_what_it_says(&url).await;
    stops(&url, &SQLITE).await;
    is_refused_without_a_connection(&url, &SQLITE).await;
    only_reads(
        &url,
        &[
            "INSERT INTO kept VALUES (9)",
            "DELETE FROM kept RETURNING n",
            "DROP TABLE kept",
            "PRAGMA user_version = 7",
        ],
    )
    .await;
}

#[tokio::test]
async fn what_sqlite_is_said_to_have_failed_at_was_not_done() {
    let (_dir, url) = sqlite();
    let site = Site::new(&url, 1, 60_000);
    site.write("CREATE TABLE kept (n INTEGER PRIMARY KEY)").await;
    site.write("CREATE TABLE of_kept (n INT REFERENCES kept DEFERRABLE INITIALLY DEFERRED)").await;
    let write = async |sql: &str| {
        let statement = format!("sql = {sql:?}\nwrite = true\nresult = \"rows\"\nrows_max = 2");
        site.call(&site.statement(&statement), &json!({})).await
    };
    let told = write("INSERT INTO kept VALUES (1), (2), (3) RETURNING n").await.unwrap_err();
    assert_eq!(told, CallError::failed("there are more than 2 rows"));
    // It is found as the transaction ends.
    let told = write("INSERT INTO of_kept VALUES (9) RETURNING n").await.unwrap_err();
    assert_eq!(told, CallError::failed("it would break a rule of the database"));
    let count = "SELECT (SELECT count(*) FROM kept) + (SELECT count(*) FROM of_kept) AS n";
    assert_eq!(site.ask(count).await.unwrap(), json!([{"n": 0}]));
    assert_eq!(write("INSERT INTO kept VALUES (1) RETURNING n").await.unwrap(), json!([{"n": 1}]));
}

#[tokio::test]
async fn postgresql_does_what_statements_say_and_no_more() {
    let Some(server) = Postgres::start() else { return };
    let url = server.url();
    gives_what_it_says(&url).await;
    stops(&url, &POSTGRES).await;
    is_refused_without_a_connection(&url, &POSTGRES).await;
    only_reads(
        &url,
        &[
            "INSERT INTO kept VALUES (9)",
            "WITH gone AS (DELETE FROM kept RETURNING n) SELECT n FROM gone",
            "WITH off AS (SELECT set_config('transaction_read_only', 'off', true) AS s) \
             INSERT INTO kept SELECT 9 FROM off",
            "DROP TABLE kept",
            "CREATE TABLE more (n int)",
        ],
    )
    .await;
}

#[tokio::test]
async fn mariadb_does_what_statements_say_and_no_more() {
    let Some(server) = MariaDb::start() else { return };
    let url = server.url();
    gives_what_it_says(&url).await;
    stops(&url, &MARIADB).await;
    is_refused_without_a_connection(&url, &MARIADB).await;
    only_reads(&url, &["INSERT INTO kept VALUES (9)", "DELETE FROM kept"]).await;
    let sql = "SELECT CAST(-12.50 AS DECIMAL(8,2)) AS d, CAST('2030-01-31 12:00:00' AS DATETIME) AS t, \
               CAST(18446744073709551615 AS UNSIGNED) AS u, X'0001' AS b";
    let expected = json!([{"d": -12.5, "t": "2030-01-31T12:00:00", "u": 18_446_744_073_709_551_615_u64, "b": "AAE="}]);
    assert_eq!(Site::new(&url, 1, 60_000).ask(sql).await.unwrap(), expected);
}

#[tokio::test]
async fn values_of_postgresql_have_their_form_in_json() {
    let Some(server) = Postgres::start() else { return };
    let site = Site::new(&server.url(), 1, 60_000);
    let sql = "SELECT true AS b, 7::int2 AS i, 1.5::float4 AS f, 'NaN'::float8 AS n, \
               '\\x0001'::bytea AS y, '{\"a\": [1]}'::jsonb AS j, \
               '2030-01-31T12:00:00.5+02'::timestamptz AS z, '2030-01-31 12:00'::timestamp AS t, \
               '2030-01-31'::date AS d, '23:59:01'::time AS c, NULL::int AS o, \
               '00112233-4455-6677-8899-aabbccddeeff'::uuid AS u";
    let expected = json!([{
        "b": true, "i": 7, "f": 1.5, "n": null, "y": "AAE=", "j": {"a": [1]},
        "z": "2030-01-31T10:00:00.5Z", "t": "2030-01-31T12:00:00", "d": "2030-01-31", "c": "23:59:01",
        "o": null, "u": "00112233-4455-6677-8899-aabbccddeeff",
    }]);
    assert_eq!(site.ask(sql).await.unwrap(), expected);
    for (sql, expected) in [
        ("SELECT 0::numeric", "0"),
        ("SELECT -12345.678::numeric", "-12345.678"),
        ("SELECT 0.00001::numeric", "0.00001"),
        ("SELECT 100000000::numeric(12,2)", "100000000.00"),
        ("SELECT 123456789012345678901234567890.5::numeric", "123456789012345678901234567890.5"),
        ("SELECT 'NaN'::numeric", "null"),
    ] {
        let statement = site.statement(&format!("sql = {sql:?}\nresult = \"value\""));
        let ran = site.database.run(&statement, &[], Instant::now() + PATIENCE, 1000).await;
        assert_eq!(&*ran.unwrap(), expected, "{sql}");
    }
    let told = site.ask("SELECT '1,2'::point AS p").await.unwrap_err();
    assert_eq!(told, CallError::failed("the statement failed"));
}

#[tokio::test]
async fn a_database_that_is_not_there_is_unavailable_and_is_not_named() {
    for url in [
        "postgres://user:hush@127.0.0.1:1/hush",
        "mysql://user:hush@127.0.0.1:1/hush",
        "sqlite:/no/such/hush.db",
    ] {
        let site = Site::new(url, 1, 100);
        let told = site.ask("SELECT 1 AS one").await.unwrap_err();
        assert_eq!(told.code(), ErrorCode::Unavailable, "{url}: {told}");
        assert!(!told.to_string().contains("hush"), "{told}");
        assert!(!format!("{:?} {:?}", site.place, site.database).contains("hush"));
    }
}

#[tokio::test]
async fn no_hostile_value_changes_a_statement_of_sqlite() {
    let (_dir, url) = sqlite();
    let count = hostile::try_all(&Site::new(&url, 2, 60_000), hostile::Echo::SQLITE).await;
    assert!(count >= 500, "{count} values");
}

#[tokio::test]
async fn no_hostile_value_changes_a_statement_of_postgresql() {
    let Some(server) = Postgres::start() else { return };
    let site = Site::new(&server.url(), 2, 60_000);
    let count = hostile::try_all(&site, hostile::Echo::POSTGRES).await;
    assert!(count >= 500, "{count} values");
}

fn methods(files: &[(&str, &str)], more: &str) -> Result<Methods, String> {
    let dir = tempfile::tempdir().unwrap();
    let statements = dir.path().join("rpc");
    std::fs::create_dir(&statements).unwrap();
    for (name, text) in files {
        std::fs::write(statements.join(name), text).unwrap();
    }
    let path = dir.path().join("c.toml");
    let text = format!("[rpc]\ndir = {:?}\n{more}", statements.to_str().unwrap());
    std::fs::write(&path, text).unwrap();
    let config = Config::load(&Sources { file: Some(&path), ..Sources::default() }).unwrap();
    Methods::new(&config).map_err(|e| e.to_string())
}

#[test]
fn what_is_wrong_with_statements_is_told_with_its_file_before_anything_runs() {
    let database = "[[databases]]\nname = \"shop\"\n";
    let entry = |name: &str, more: &str| {
        format!(
            "[[statement]]\nname = {name:?}\ndescription = \"x\"\ndatabase = \"shop\"\nallow = [\"anyone\"]\n{more}\n"
        )
    };
    let good = entry("a", "sql = \"SELECT 1\"");
    for (text, why) in [
        (entry("log.a", "sql = \"SELECT 1\""), "\"log.a\": name: clients make functions"),
        (entry("a", "sql = \"SELECT :x\""), "\"a\": sql: :x is no parameter of it"),
        (entry("a", "sql = \"SELECT 1; SELECT 2\""), "\"a\": sql: allowed is one statement"),
        (
            entry("a", "sql = \"SELECT 1\"\nresult = \"affected\""),
            "only statements with write = true",
        ),
        (entry("a", "sql = \"SELECT 1\"\nresult = \"all\""), "x.toml:7: unknown variant `all`"),
        (entry("a", "sql = \"SELECT 1\"\nrows = 7"), "x.toml:7: unknown field `rows`"),
        (
            entry("a", "sql = \"SELECT 1\"").replace("anyone", "root"),
            "\"a\": allow[0]: \"root\" is nobody",
        ),
        (
            entry("a", "sql = \"SELECT 1\"").replace("shop", "hop"),
            "database = \"hop\": there is none; [[databases]] has: shop",
        ),
        (format!("{good}{good}"), "\"a\": there is a method of this name before"),
        (good.replace("description = \"x\"\n", ""), "missing field `description`"),
    ] {
        let told = methods(&[("x.toml", &text)], database).unwrap_err();
        assert!(told.contains(why) && told.contains("x.toml"), "{why} is not in: {told}");
    }
    methods(&[("x.toml", &good), ("y.txt", "no toml")], database).unwrap();
    let url = "[[databases]]\nname = \"a\"\nurl = \"ftp://hush\"\n";
    let told = methods(&[], url).unwrap_err();
    assert!(
        told.starts_with("databases[0].url: it is no URL of a database") && !told.contains("hush")
    );
}

#[test]
fn methods_are_listed_as_generated_clients_read_them() {
    let file = "[[statement]]\nname = \"products.find\"\ndescription = \"Products by name\"\ndatabase = \"shop\"\n\
                sql = \"SELECT :name, :n\"\nallow = [\"anyone\"]\n\
                params = [{ name = \"name\", type = \"text\", required = true, max_length = 5, description = \"Of it\" },\n\
                { name = \"n\", type = \"int\", default = 1, min = 1, enum = [1, 2] }]\n";
    let more = "builtin = true\n[[databases]]\nname = \"shop\"\n[[rpc_methods]]\nname = \"app.*\"\nurl = \"http://127.0.0.1:1/\"\nallow = []\n";
    let listed = methods(&[("x.toml", file)], more).unwrap().listing("one", "2030-01-31");
    assert_eq!((&listed["server"], &listed["type"]), (&json!("one"), &json!("rpc")));
    let all = listed["methods"].as_array().unwrap();
    let names: Vec<&str> = all.iter().map(|own| own["method"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["channels.list", "client.info", "ping", "products.find", "server.methods", "server.stats"]
    );
    assert!(all.iter().all(|own| own["description"].is_string() && own["params"].is_array()));
    let guests: Vec<bool> = all.iter().map(|own| own["allow_guest"].as_bool().unwrap()).collect();
    assert_eq!(guests, [false, true, true, true, false, false]);
    let expected = json!([
        {"name": "name", "type": "text", "description": "Of it", "default": null, "required": true, "example": null,
         "validation": {"max_length": 5}, "injected": false},
        {"name": "n", "type": "int", "description": "", "default": 1, "required": false, "example": null,
         "validation": {"min": 1}, "injected": false, "enum": [1, 2]},
    ]);
    assert_eq!(all[3]["params"], expected);
}
