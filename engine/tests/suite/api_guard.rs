//! Who may use the internal port.

use super::common::{TestServer, http};

const GOOD: &str = r#"{"channel":"a","data":1}"#;

/// Status of a request with this head behind the request line.
fn status(server: &TestServer, target: &str, headers: &str) -> u16 {
    let answer = answer(server, target, headers);
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

fn answer(server: &TestServer, target: &str, headers: &str) -> String {
    use std::io::Write as _;
    let mut stream = super::api_port::connect(server);
    write!(stream, "GET {target} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
    super::api_port::rest(&stream)
}

#[test]
fn without_keys_only_names_of_this_machine_are_served() {
    let server = TestServer::open(&[]);
    for target in ["/api/stats", "/api/channels", "/metrics", "/api/openapi.json"] {
        for host in [
            "localhost",
            "LocalHost:9801",
            "127.0.0.1",
            "127.0.0.1:9801",
            "127.8.9.10:1",
            "[::1]",
            "[::1]:9801",
        ] {
            assert_eq!(status(&server, target, &format!("Host: {host}\r\n")), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9801",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "localhost@evil.example",
            "",
        ] {
            assert_eq!(status(&server, target, &format!("Host: {host}\r\n")), 403, "{host:?}");
        }
        assert_eq!(status(&server, target, "Host: localhost\r\nHost: evil.example\r\n"), 403);
        let absolute = format!("http://evil.example{target}");
        assert_eq!(status(&server, &absolute, "Host: localhost\r\n"), 403);
        // A request without a name comes from no browser, but names nothing of this machine either.
        assert_eq!(status(&server, target, ""), 403);
    }
    for target in ["/health", "/ready"] {
        assert_eq!(status(&server, target, "Host: balancer.example\r\n"), 200);
    }
}

#[test]
fn without_keys_pages_of_other_sites_are_refused() {
    let server = TestServer::open(&[]);
    for (site, expected) in [("cross-site", 403), ("same-site", 403), ("none", 200)] {
        let headers = format!("Sec-Fetch-Site: {site}\r\n");
        let (got, _) = http(server.internal, "POST", "/api/publish", &headers, GOOD);
        assert_eq!(got, expected, "{site}");
        assert_eq!(status(&server, "/metrics", &format!("Host: localhost\r\n{headers}")), expected);
    }
    let origin = "Host: localhost\r\nOrigin: http://localhost:9801\r\n";
    assert_eq!(status(&server, "/api/stats", origin), 403);
}

#[test]
fn beyond_loopback_figures_need_a_key_too() {
    let server =
        TestServer::open(&["api.listen=0.0.0.0:0", "api.keys=0123456789abcdef,fedcba9876543210"]);
    for target in ["/metrics", "/api/openapi.json", "/api/stats"] {
        assert_eq!(status(&server, target, "Host: localhost\r\n"), 401, "{target}");
        let key = "Host: any.example\r\nAuthorization: Bearer fedcba9876543210\r\n";
        assert_eq!(status(&server, target, key), 200, "{target}");
    }
    assert_eq!(status(&server, "/health", "Host: any.example\r\n"), 200);
    assert_eq!(status(&server, "/ready", "Host: any.example\r\n"), 200);
}

#[test]
fn on_loopback_figures_need_no_key_but_a_name_of_this_machine() {
    let server = TestServer::open(&["api.keys=secret"]);
    for target in ["/metrics", "/api/openapi.json"] {
        assert_eq!(status(&server, target, "Host: localhost\r\n"), 200, "{target}");
        assert_eq!(status(&server, target, "Host: evil.example\r\n"), 403, "{target}");
        let key = "Host: any.example\r\nX-API-Key: secret\r\n";
        assert_eq!(status(&server, target, key), 200, "{target}");
    }
    assert_eq!(status(&server, "/api/stats", "Host: localhost\r\n"), 401);
}

#[test]
fn wrong_keys_of_one_address_are_limited_and_right_ones_are_not() {
    let server = TestServer::open(&["api.keys=secret"]);
    let with = |key: &str| {
        let answer = answer(&server, "/api/stats", &format!("Host: a\r\nX-API-Key: {key}\r\n"));
        let retry = answer.to_ascii_lowercase().contains("retry-after: ");
        (answer[9..12].to_owned(), retry)
    };
    let answers: Vec<_> = (0..200).map(|i| with(&format!("wrong-{i}"))).collect();
    assert_eq!(answers[0], ("401".into(), false));
    assert!(answers.contains(&("429".into(), true)), "{answers:?}");
    assert_eq!(with("secret"), ("200".into(), false));
    // Who shows no key guesses none.
    assert_eq!(status(&server, "/api/stats", "Host: a\r\n"), 401);
}

#[test]
fn the_scheme_of_a_key_is_not_case_sensitive_but_the_key_is() {
    let server = TestServer::open(&["api.keys=secret"]);
    for (header, expected) in [
        ("Authorization: Bearer secret", 200),
        ("Authorization: bearer secret", 200),
        ("authorization: BEARER   secret ", 200),
        ("Authorization: Bearer Secret", 401),
        ("Authorization: Bearersecret", 401),
        ("Authorization: Basic secret", 401),
        ("Authorization: Bearer", 401),
        ("X-API-Key: secret", 200),
        ("X-API-Key:", 401),
        ("X-API-Key: \u{e9}", 401),
    ] {
        let headers = format!("Host: a\r\n{header}\r\n");
        assert_eq!(status(&server, "/api/stats", &headers), expected, "{header}");
    }
}
