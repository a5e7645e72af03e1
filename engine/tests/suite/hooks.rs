//! The application has its say, over HTTP, while everything else goes on.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};

use super::common::tokens::{ISSUER, now, token};
use super::common::{CHANNELS, Client, PATIENCE, TestServer, http};

/// What the application says to an event: a status and a body. Answered when it returns.
type Says = dyn Fn(&Value) -> (u16, Value) + Send + Sync;

/// An application: each request on a thread of its own.
pub(super) struct Application {
    pub(super) address: SocketAddr,
    /// The events it was asked about, with the cookies of the request.
    asked: Receiver<(Value, String)>,
}

impl Application {
    pub(super) fn start(
        says: impl Fn(&Value) -> (u16, Value) + Send + Sync + 'static,
    ) -> Application {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = bounded(1024);
        let says: Arc<Says> = Arc::new(says);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (says, tell) = (says.clone(), tell.clone());
                std::thread::spawn(move || serve(stream, &*says, &tell));
            }
        });
        Application { address, asked }
    }

    pub(super) fn next(&self) -> (Value, String) {
        self.asked.recv_timeout(PATIENCE).expect("the application is asked")
    }

    /// With hooks of these names at this application.
    fn config(&self, hooks: &[&str], more: &str) -> String {
        let urls: Vec<String> =
            hooks.iter().map(|hook| format!("{hook}_url = \"http://{}/\"", self.address)).collect();
        format!("[hooks]\n{}\n{more}{CHANNELS}", urls.join("\n"))
    }
}

/// Answers the requests of one connection.
fn serve(stream: TcpStream, says: &Says, tell: &Sender<(Value, String)>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let (mut length, mut cookies, mut line) = (0, String::new(), String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let (name, value) = line.trim_end().split_once(": ").unwrap_or((line.trim_end(), ""));
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "cookie" => cookies = value.to_owned(),
                "" => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let event: Value = serde_json::from_slice(&body).ok()?;
        tell.send((event.clone(), cookies)).ok()?;
        let (status, answer) = says(&event);
        let answer = if answer.is_null() { String::new() } else { answer.to_string() };
        let length = answer.len();
        // In one piece: what is written in several waits for an acknowledgement in between.
        let reply = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{answer}");
        stream.write_all(reply.as_bytes()).ok()?;
    }
}

#[test]
fn the_application_says_who_a_request_is_by_its_cookie() {
    let app = Application::start(|event| match event["headers"]["cookie"].as_str() {
        Some(cookie) if cookie.contains("session=ann") => {
            (200, json!({"user": "ann", "channels": ["closed.a"], "info": {"name": "Ann"}}))
        }
        Some(cookie) if cookie.contains("session=bob") => (403, json!({"message": "not you, Bob"})),
        _ => (401, Value::Null),
    });
    let server = TestServer::start(&app.config(&["connect", "disconnect"], ""), &[]);
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let ask =
        |cookie: &str| http(server.public, "GET", "/ws?a=b", &format!("{upgrade}{cookie}"), "");
    let (status, text) = ask("Cookie: session=bob\r\n");
    assert_eq!((status, text.trim()), (403, "not you, Bob"));
    let (event, cookies) = app.next();
    assert_eq!((&event["event"], cookies.as_str()), (&json!("connect"), "session=bob"));
    assert_eq!((&event["path"], &event["query"]), (&json!("/ws"), &json!("a=b")));
    assert_eq!(event["address"], "127.0.0.1");
    assert_eq!(ask("").0, 401);
    app.next();
    let mut ann =
        super::authentication::open(&server, "/ws", &[("Cookie", "session=ann; x=y".into())])
            .unwrap();
    let connection = app.next().0["connection"].clone();
    let greeting = ann.receive();
    assert_eq!((&greeting["user"], &greeting["connection"]), (&json!("ann"), &connection));
    let subscribed = ann.receive();
    assert_eq!(
        (&subscribed["type"], &subscribed["channel"]),
        (&json!("subscribed"), &json!("closed.a"))
    );
    let one = json!({"connection": connection, "code": 4999, "reason": "bye"}).to_string();
    assert_eq!(server.http("POST", "/api/disconnect", &one).1, r#"{"connections":1}"#);
    assert_eq!(ann.closed(), (4999, "bye".into()));
    drop(ann);
    let (event, _) = app.next();
    assert_eq!((&event["event"], &event["user"]), (&json!("disconnect"), &json!("ann")));
    assert_eq!((&event["connection"], &event["code"]), (&connection, &json!(4999)));
}

#[test]
fn what_the_application_has_said_stays_when_a_newer_token_is_shown() {
    let app = Application::start(|event| match event["user"].as_str() {
        Some("ann") => (
            200,
            json!({"roles": ["guest"], "channels": ["closed.hers"], "expires_at": now() + 100,
                "permissions": {"deny": {"publish": ["open.*"]}}}),
        ),
        Some("bob") => (200, json!({"user": "robert"})),
        Some("eve") => (403, Value::Null),
        _ => (200, json!({})),
    });
    let more = "[auth]\nanonymous = true\n[[permissions]]\nwho = [\"role:guest\"]\nchannels = [\"rooms.*\"]\ndeny = [\"subscribe\"]\n";
    let toml = format!("{more}{}{ISSUER}", app.config(&["connect"], ""));
    let server = TestServer::start(&toml, &["server.shards=1"]);
    let show = |user: &str| json!({"type": "auth", "id": 1, "token": token(user, 600, json!({}))});
    let come = |user: &str| {
        let target = format!("/ws?token={}", token(user, 200, json!({})));
        let mut client = Client::connect(server.public, &target);
        assert_eq!(client.receive()["type"], "connected");
        client
    };
    let mut ann = come("ann");
    assert_eq!(ann.receive()["channel"], "closed.hers");
    let newer = ann.ask(show("ann"));
    assert_eq!(newer["type"], "connected", "{newer}");
    assert!(newer["expires_in_ms"].as_u64().unwrap() <= 100_000, "the earlier end counts: {newer}");
    let publish = ann.ask(json!({"type": "publish", "id": 2, "channel": "open.a", "data": 1}));
    assert_eq!(publish["code"], "forbidden", "{publish}");
    let subscribe = ann.ask(json!({"type": "subscribe", "id": 3, "channel": "rooms.a"}));
    assert_eq!(subscribe["code"], "forbidden", "she is a guest still: {subscribe}");
    server.publish("closed.hers", json!("still"));
    assert_eq!(ann.receive()["data"], "still");
    assert_eq!(ann.ask(show("bob"))["code"], "unauthenticated");
    // It calls Bob something else: whose token it is counts.
    let mut bob = come("bob");
    assert_eq!(bob.ask(show("bob"))["user"], "robert");
    assert_eq!(bob.ask(show("robert"))["code"], "unauthenticated");
    // Whom it was not asked about nobody becomes.
    let mut stranger = server.client();
    stranger.receive();
    let refused = stranger.ask(show("eve"));
    assert_eq!(refused["code"], "unauthenticated", "{refused}");
}

#[test]
fn what_is_asked_about_a_connection_comes_in_order_from_all_shards() {
    let app = Application::start(|event| match event["event"].as_str() {
        Some("publish") => (200, json!({"allow": true})),
        _ => (200, json!({})),
    });
    let rule = "[[channels]]\npattern = \"asked.*\"\npublish = \"hook\"\n";
    let toml = app.config(&["publish", "message", "disconnect"], rule);
    let server = TestServer::start(&toml, &["server.shards=4"]);
    for _ in 0..20 {
        let mut client = server.client();
        for n in 0..12u32 {
            let channel = format!("asked.{n}");
            client.send(match n % 3 {
                2 => json!({"type": "other", "n": n}),
                _ => json!({"type": "publish", "channel": channel, "data": {"n": n}}),
            });
        }
        client.socket.close(None).unwrap();
        let seen: Vec<Value> = (0..13).map(|_| app.next().0).collect();
        let numbers = seen.iter().map(|event| match event["event"].as_str().unwrap() {
            "publish" => event["data"]["n"].as_u64(),
            "message" => event["message"]["n"].as_u64(),
            _ => None,
        });
        let due: Vec<Option<u64>> = (0..12).map(Some).chain([None]).collect();
        assert_eq!(numbers.collect::<Vec<_>>(), due);
    }
}

#[test]
fn the_application_is_told_of_the_end_of_those_alone_who_were_let_in() {
    let app = Application::start(|event| match event["query"].as_str() {
        Some("no") => (403, Value::Null),
        _ => (200, json!({"user": "ann"})),
    });
    let toml = app.config(&["connect", "disconnect"], "[auth]\nrefuse_after_upgrade = true\n");
    let server = TestServer::start(&toml, &[]);
    assert_eq!(Client::connect(server.public, "/ws?no").closed().0, 4503);
    assert_eq!(app.next().0["event"], "connect");
    let mut ann = Client::connect(server.public, "/ws");
    ann.receive();
    assert_eq!(app.next().0["event"], "connect");
    drop(ann);
    let (event, _) = app.next();
    assert_eq!((&event["event"], &event["user"]), (&json!("disconnect"), &json!("ann")));
}

#[test]
fn an_application_that_is_not_there_lets_nobody_in_and_says_when_to_come_again() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let toml = format!("[hooks]\nconnect_url = \"http://{gone}/\"\n{CHANNELS}");
    let server = TestServer::start(&toml, &["hooks.retries=0", "hooks.breaker_failures=1"]);
    for _ in 0..3 {
        let refusal = super::authentication::open(&server, "/ws", &[]).map(|_| ()).unwrap_err();
        assert_eq!(refusal.status(), 503);
        let seconds: u32 = refusal.headers()["Retry-After"].to_str().unwrap().parse().unwrap();
        assert!((1..=10).contains(&seconds));
        let text = String::from_utf8(refusal.into_body().unwrap()).unwrap();
        assert!(
            !text.contains(&gone.port().to_string()),
            "where it is, is nobody's business: {text}"
        );
    }
    let (_, metrics) = server.http("GET", "/metrics", "");
    let line = "ringfeed_hook_breaker_state{hook=\"connect\"} 2";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn channels_are_asked_about_and_publications_keep_their_order() {
    let (go, wait) = bounded::<()>(1);
    let app = Application::start(move |event| {
        match (event["event"].as_str().unwrap(), event["channel"].as_str()) {
            ("subscribe", Some("asked.no")) => {
                (200, json!({"allow": false, "message": "members only"}))
            }
            ("subscribe", _) => (200, json!({"allow": true})),
            ("publish", _) => match event["data"].as_str().unwrap_or_default() {
                "bad" => (403, Value::Null),
                "first" => {
                    wait.recv_timeout(PATIENCE).unwrap();
                    (200, json!({"allow": true, "data": "FIRST"}))
                }
                _ => (200, json!({"allow": true})),
            },
            ("message", _) => (200, json!({"reply": {"you": "said", "it": event["message"]["n"]}})),
            other => panic!("{other:?}"),
        }
    });
    let rule = "[[channels]]\npattern = \"asked.*\"\nsubscribe = \"hook\"\npublish = \"hook\"\n";
    let server = TestServer::start(&app.config(&["subscribe", "publish", "message"], rule), &[]);
    let mut reader = server.client();
    let refused = reader.ask(json!({"type": "subscribe", "id": 1, "channel": "asked.no"}));
    assert_eq!(
        (&refused["code"], &refused["message"]),
        (&json!("forbidden"), &json!("members only"))
    );
    reader.subscribe("asked.a");
    let (mut one, mut other) = (server.client(), server.client());
    let publish = |client: &mut Client, id: u32, data: &str| {
        client.send(json!({"type": "publish", "id": id, "channel": "asked.a", "data": data}));
    };
    publish(&mut one, 1, "first");
    while app.next().0["event"] != "publish" {}
    // Behind it, of whoever and from wherever: they wait for it, and nothing else does.
    publish(&mut other, 2, "second");
    publish(&mut other, 3, "bad");
    assert_eq!(one.ask(json!({"type": "ping", "id": 9}))["type"], "pong");
    server.publish("open.a", json!(1));
    go.send(()).unwrap();
    for data in ["FIRST", "second"] {
        assert_eq!(reader.receive()["data"], data);
    }
    assert_eq!(one.receive()["offset"], 1);
    let (published, refused) = (other.receive(), other.receive());
    assert_eq!((&published["id"], &published["offset"]), (&json!(2), &json!(2)));
    assert_eq!((&refused["type"], &refused["id"]), (&json!("error"), &json!(3)), "{refused}");
    let reply = one.ask(json!({"type": "greet", "id": "m", "n": 7}));
    assert_eq!(reply, json!({"type": "reply", "id": "m", "data": {"you": "said", "it": 7}}));
}

#[test]
fn an_order_to_unsubscribe_also_ends_a_subscribe_that_is_being_asked_about() {
    let (go, wait) = bounded::<()>(1);
    let app = Application::start(move |_| {
        wait.recv_timeout(PATIENCE).unwrap();
        (200, json!({"allow": true}))
    });
    let rule = "[[channels]]\npattern = \"asked.*\"\nsubscribe = \"hook\"\n";
    let server = TestServer::start(&app.config(&["subscribe"], rule), &[]);
    let mut client = Client::connect(server.public, "/ws");
    let id = client.ask(json!({"type": "auth", "id": 0}))["connection"].clone();
    client.send(json!({"type": "subscribe", "id": 1, "channel": "asked.a"}));
    app.next();
    for (channel, of) in [("asked.b", 1), ("asked.a", 1)] {
        let order = json!({"connection": id, "channel": channel}).to_string();
        let (status, body) = server.http("POST", "/api/unsubscribe", &order);
        assert_eq!((status, body), (200, json!({"connections": of}).to_string()));
    }
    go.send(()).unwrap();
    let refused = client.receive();
    assert_eq!((&refused["id"], &refused["code"]), (&json!(1), &json!("forbidden")), "{refused}");
    // Nor is it there behind its back; and it may try again.
    server.publish("asked.a", json!("unheard"));
    go.send(()).unwrap();
    client.subscribe("asked.a");
    server.publish("asked.a", json!("heard"));
    assert_eq!(client.receive()["data"], "heard");
}

/// What a page that was not written for ringfeed hears, and what its client is told.
#[test]
fn a_page_that_is_asked_with_get_says_who_connects() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, heard) = bounded(64);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).is_ok_and(|n| n > 0) {}
            let (status, body) = match &*head {
                head if head.contains("AUTH_TOKEN=ann") => (200, "{\"id\":\"ann\",\"roles\":7}"),
                head if head.contains("AUTH_TOKEN=number") => (200, "{\"id\":7}"),
                head if head.contains("AUTH_TOKEN=html") => (200, "<html>"),
                head if head.contains("AUTH_TOKEN=broken") => (500, ""),
                head if head.contains("AUTH_TOKEN=moved") => (302, ""),
                _ => (401, "who?"),
            };
            let _ = tell.send(head);
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\nLocation: /ws\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    let hooks = |url: &str, more: &str| {
        format!(
            "[server]\norigins = [\"https://a.example.org\"]\n[hooks]\nconnect_url = \"{url}\"\nconnect_method = \"get\"\nbreaker_failures = 1000\nretries = 0\n{more}{CHANNELS}"
        )
    };
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Real-IP: 1.2.3.4\r\n\
                   User-Agent: canary\r\nAuthorization: Basic canary\r\nX-Forwarded-For: 1.2.3.4\r\n";
    let ask = |server: &TestServer, cookie: &str| {
        let headers =
            format!("{upgrade}Cookie: other=canary; AUTH_TOKEN={cookie}; AUTH_TOKEN2=canary\r\n");
        let (status, text) = http(server.public, "GET", "/ws?canary", &headers, "");
        (status, text.trim().to_owned())
    };
    let url = format!("http://{address}/auth.php");
    let few = hooks(&url, "forward_headers = [\"cookie\"]\nconnect_cookies = [\"AUTH_TOKEN\"]\n");
    let server = TestServer::start(&few, &[]);
    for (cookie, status, text) in [
        ("bob", 401, "Unauthorized"),
        ("number", 500, "Invalid auth response"),
        ("html", 500, "Invalid auth response"),
        ("broken", 401, "Unauthorized"),
        ("moved", 401, "Unauthorized"),
    ] {
        assert_eq!(ask(&server, cookie), (status, text.to_owned()), "{cookie}");
        let head = heard.recv_timeout(PATIENCE).unwrap();
        assert!(head.starts_with("GET /auth.php HTTP/1.1\r\n"), "{head}");
        assert!(
            head.to_lowercase().contains(&format!("cookie: auth_token={cookie}\r\n")),
            "{head}"
        );
        assert!(!head.contains("canary") && !head.contains("1.2.3.4"), "{head}");
    }
    assert_eq!(heard.try_recv().ok(), None, "no redirect is followed");
    let cookie = [("Cookie", "AUTH_TOKEN=ann".to_owned())];
    let mut ann = super::authentication::open(&server, "/ws", &cookie).unwrap();
    assert_eq!(ann.receive()["user"], "ann");
    heard.recv_timeout(PATIENCE).unwrap();

    let five = "forward_headers = [\"authorization\", \"cookie\", \"user-agent\", \"x-forwarded-for\", \"x-real-ip\"]\n";
    let server = TestServer::start(&hooks(&url, five), &[]);
    assert_eq!(ask(&server, "bob").0, 401);
    let head = heard.recv_timeout(PATIENCE).unwrap().to_lowercase();
    for field in [
        "authorization: basic canary",
        "cookie: other=canary; auth_token=bob; auth_token2=canary",
        "user-agent: canary",
        // Whatever the client says of itself.
        "x-forwarded-for: 127.0.0.1",
        "x-real-ip: 127.0.0.1",
    ] {
        assert!(head.contains(&format!("\r\n{field}\r\n")), "{field}: {head}");
    }
    assert!(!head.contains("1.2.3.4"), "{head}");

    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = TestServer::start(&hooks(&format!("http://{nowhere}/"), ""), &[]);
    assert_eq!(ask(&server, "ann"), (502, "Bad Gateway".into()));
}

/// Changes of who is on a channel, as they are told, each with its id.
fn changes(event: &Value) -> Vec<String> {
    let all = event["changes"].as_array().unwrap().iter();
    all.map(|own| format!("{} {}", own["change"].as_str().unwrap(), own["user"].as_str().unwrap()))
        .collect()
}

/// Rules whose users the application is told of.
const HEARD: &str =
    "[[channels]]\npattern = \"heard.*\"\npresence = \"full\"\npresence_hook = true\n";

fn user(server: &TestServer, name: &str) -> Client {
    let target = format!("/ws?token={}", token(name, 600, json!({"info": {"of": name}})));
    let mut client = Client::connect(server.public, &target);
    assert_eq!(client.receive()["user"], name);
    client
}

#[test]
fn the_application_is_told_when_a_user_comes_to_a_channel_and_leaves_it() {
    let app = Application::start(|_| (204, Value::Null));
    let server = TestServer::start(
        &format!("{}{ISSUER}", app.config(&["presence"], HEARD)),
        &["auth.anonymous=true", "server.shards=2"],
    );
    let mut anns: Vec<Client> = (0..4).map(|_| user(&server, "ann")).collect();
    anns[0].subscribe("heard.a");
    let (came, _) = app.next();
    assert_eq!((&came["event"], &came["lost"]), (&json!("presence"), &json!(0)));
    let change = &came["changes"][0];
    assert_eq!((&change["change"], &change["channel"]), (&json!("join"), &json!("heard.a")));
    assert_eq!((&change["user"], &change["info"]), (&json!("ann"), &json!({"of": "ann"})));
    assert_eq!(change["epoch"].as_str().map(str::len), Some(16));
    assert_eq!(came["id"].as_str().map(str::len), Some(32));
    // Neither the others, nor who is nobody, nor other channels.
    anns[1..].iter_mut().for_each(|ann| _ = ann.subscribe("heard.a"));
    let mut stranger = server.client();
    stranger.subscribe("heard.a");
    anns[0].subscribe("open.a");
    drop(anns.split_off(1));
    anns[0].ask(json!({"type": "unsubscribe", "id": 1, "channel": "open.a"}));
    let unsubscribed = anns[0].ask(json!({"type": "unsubscribe", "id": 2, "channel": "heard.a"}));
    assert_eq!(unsubscribed["type"], "unsubscribed");
    let (left, _) = app.next();
    assert_eq!(changes(&left), ["leave ann"]);
    // A stranger who becomes somebody has come.
    let shown = json!({"type": "auth", "id": 2, "token": token("bob", 600, json!({}))});
    assert_eq!(stranger.ask(shown)["user"], "bob");
    assert_eq!(changes(&app.next().0), ["join bob"]);
    drop(stranger);
    assert_eq!(changes(&app.next().0), ["leave bob"]);
}

#[test]
fn what_was_not_heard_comes_again_in_order_and_what_came_to_nothing_does_not() {
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_down = down.clone();
    let app =
        Application::start(move |_| match is_down.load(std::sync::atomic::Ordering::SeqCst) {
            true => (503, Value::Null),
            false => (200, json!({})),
        });
    let server = TestServer::start(
        &format!("{}{ISSUER}", app.config(&["presence"], HEARD)),
        &["hooks.presence_batch_max=3", "hooks.breaker_failures=1000", "server.shards=1"],
    );
    let mut first = user(&server, "first");
    first.subscribe("heard.a");
    let (told, _) = app.next();
    assert_eq!(changes(&told), ["join first"]);
    // While the application is down some come, and some of these go.
    let mut guests: Vec<Client> = (0..9).map(|i| user(&server, &format!("guest{i}"))).collect();
    guests.iter_mut().for_each(|guest| _ = guest.subscribe("heard.a"));
    guests.truncate(5);
    server.wait_total("presence_changes_waiting", |n| n == 6);
    drop(first);
    server.wait_total("presence_changes_waiting", |n| n == 7);
    let (again, _) = app.next();
    assert_eq!(again, told, "the same, with its id");
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    let (mut heard, mut last) = (Vec::new(), told["id"].clone());
    while heard.len() < 6 {
        let (event, _) = app.next();
        if event["id"] == last {
            assert!(heard.is_empty(), "what was heard does not come again");
            continue;
        }
        last = event["id"].clone();
        assert_eq!(event["lost"], 0);
        assert!(changes(&event).len() <= 3);
        heard.extend(changes(&event));
    }
    let mut expected: Vec<String> = (0..5).map(|i| format!("join guest{i}")).collect();
    expected.push("leave first".into());
    assert_eq!(heard, expected);
    server.wait_total("presence_changes_waiting", |n| n == 0);
}

#[test]
fn what_is_too_much_to_wait_is_given_up_and_told() {
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_down = down.clone();
    let app =
        Application::start(move |_| match is_down.load(std::sync::atomic::Ordering::SeqCst) {
            true => (503, Value::Null),
            false => (200, json!({})),
        });
    let server = TestServer::start(
        &format!("{}{ISSUER}", app.config(&["presence"], HEARD)),
        &["hooks.presence_queue_max=4", "hooks.breaker_failures=1000", "server.shards=1"],
    );
    let mut first = user(&server, "first");
    first.subscribe("heard.a");
    app.next();
    let mut guests: Vec<Client> = (0..10).map(|i| user(&server, &format!("guest{i}"))).collect();
    guests.iter_mut().for_each(|guest| _ = guest.subscribe("heard.a"));
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    let lost = loop {
        let (event, _) = app.next();
        if changes(&event)[0] != "join first" {
            break event;
        }
    };
    assert_eq!(lost["lost"], 6);
    assert_eq!(changes(&lost), ["join guest6", "join guest7", "join guest8", "join guest9"]);
}
