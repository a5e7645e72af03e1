//! `/api/ingest`: what is acknowledged, and how a stream ends.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::api_port::{connect, read_to, rest};
use super::common::TestServer;
use serde_json::{Value, json};

/// An ingest stream that has sent its head.
fn begin(server: &TestServer) -> TcpStream {
    let mut stream = connect(server);
    stream.set_nodelay(true).unwrap();
    let head = "POST /api/ingest HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn chunk(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

/// The acknowledgements in an answer with chunks.
fn acks(answer: &str) -> Vec<Value> {
    answer
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(Value::is_object)
        .collect()
}

fn post(server: &TestServer, lines: &str) -> (u16, Vec<Value>) {
    let (status, answer) = server.http("POST", "/api/ingest", lines);
    (status, acks(&answer))
}

#[test]
fn lines_are_numbered_as_editors_do() {
    let server = TestServer::open(&[]);
    let lines = "{\"channel\":\"i\",\"data\":1}\n\n  \r\nnonsense\n{\"channel\":\"i\",\"data\":2}";
    let (status, acks) = post(&server, lines);
    assert_eq!(status, 200);
    let errors: Vec<_> =
        acks.iter().filter_map(|ack| ack["errors"].as_array()).flatten().cloned().collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!((&errors[0]["line"], &errors[0]["error"]), (&json!(4), &json!("bad_json")));
    let last = acks.last().unwrap();
    assert_eq!(*last, json!({"lines": 5, "accepted": 2, "refused": 1, "end": "complete"}));
}

#[test]
fn a_stream_says_how_it_ends() {
    let server = TestServer::open(&["api.body_bytes_max=1024"]);
    let (status, acks) = post(&server, "");
    assert_eq!(
        (status, acks),
        (200, vec![json!({"lines":0,"accepted":0,"refused":0,"end":"complete"})])
    );
    // One good line, and then one that is too long: the status is told already.
    let mut stream = begin(&server);
    chunk(&mut stream, "{\"channel\":\"i\",\"data\":1}\n").unwrap();
    assert!(read_to(&stream, "}\n").starts_with("HTTP/1.1 200 "));
    let _ = chunk(&mut stream, &"x".repeat(5000));
    let answer = rest(&stream);
    let last = self::acks(&answer).pop().unwrap();
    assert_eq!(last["end"], "failed", "{answer}");
    assert_eq!(last["error"], "limit_reached", "{answer}");
    assert_eq!((&last["lines"], &last["accepted"]), (&json!(1), &json!(1)));
    assert!(last["message"].as_str().unwrap().contains("line 2"), "{answer}");
}

#[test]
fn how_long_a_line_may_be_does_not_depend_on_how_it_arrives() {
    let server = TestServer::open(&["api.body_bytes_max=1024"]);
    let line = |len: usize| format!("{:<len$}\n", "{\"channel\":\"i\",\"data\":1}");
    let good = line(1024);
    let (status, acks) = post(&server, &good.repeat(3));
    assert_eq!((status, &acks.last().unwrap()["accepted"]), (200, &json!(3)));
    // All at once, and one byte after the other.
    let (status, acks) = post(&server, &format!("{good}\n{}{good}", line(1025)));
    let whole = acks.last().unwrap().clone();
    assert_eq!((status, &whole["lines"], &whole["accepted"]), (200, &json!(2), &json!(1)));
    assert_eq!(whole["error"], "limit_reached", "{whole}");
    assert!(whole["message"].as_str().unwrap().starts_with("line 3: "), "{whole}");
    let mut stream = begin(&server);
    chunk(&mut stream, &format!("{good}\n")).unwrap();
    read_to(&stream, "}\n");
    for byte in line(1025).chars() {
        // The server may have ended it before the line has.
        if chunk(&mut stream, &byte.to_string()).is_err() {
            break;
        }
    }
    assert_eq!(self::acks(&rest(&stream)).pop(), Some(whole));
}

#[test]
fn a_stream_whose_first_lines_are_all_refused_is_an_error() {
    let server = TestServer::open(&["api.body_bytes_max=1024"]);
    let (status, answer) = server.http("POST", "/api/ingest", "\n{\"channel\":\"i\"}\nx\n");
    assert_eq!(status, 400, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (&answer["error"], &answer["refused"]),
        (&json!("bad_command"), &json!(2)),
        "{answer}"
    );
    assert_eq!(answer["errors"][0]["line"], 2, "{answer}");
    assert!(answer["message"].as_str().unwrap().starts_with("line 2: "), "{answer}");
    let (status, answer) = server.http("POST", "/api/ingest", &"x".repeat(5000));
    assert_eq!(status, 413, "{answer}");
}

#[test]
fn many_refused_lines_make_a_small_answer() {
    let server = TestServer::open(&[]);
    let lines = format!("{{\"channel\":\"i\",\"data\":1}}\n{}", "x\n".repeat(200_000));
    let (status, answer) = server.http("POST", "/api/ingest", &lines);
    assert_eq!(status, 200);
    assert!(answer.len() < lines.len(), "{} bytes for {}", answer.len(), lines.len());
    let acks = acks(&answer);
    let last = acks.last().unwrap();
    assert_eq!((&last["lines"], &last["refused"]), (&json!(200_001), &json!(200_000)));
}

#[test]
fn who_does_not_read_acknowledgements_can_send_all_the_same() {
    let server = TestServer::open(&[]);
    let mut stream = begin(&server);
    let socket = socket2::SockRef::from(&stream);
    socket.set_recv_buffer_size(1 << 15).unwrap();
    // Each refused line makes an acknowledgement longer than itself; far more than sockets hold.
    let line = "{\"channel\":\"i\",\"data\":1}\nx\n";
    for _ in 0..60_000 {
        chunk(&mut stream, line).unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let answer = rest(&stream);
    let acks = acks(&answer);
    let last = acks.last().unwrap();
    assert_eq!((&last["accepted"], &last["refused"]), (&json!(60_000), &json!(60_000)));
    assert_eq!(last["end"], "complete");
    assert!(answer.ends_with("0\r\n\r\n"));
}

#[test]
fn a_silent_stream_is_ended_and_says_so() {
    let server =
        TestServer::open(&["api.ingest_idle_timeout_ms=1000", "api.body_idle_timeout_ms=100"]);
    let mut stream = begin(&server);
    chunk(&mut stream, "{\"channel\":\"i\",\"data\":1}\n").unwrap();
    let answer = rest(&stream);
    let last = acks(&answer).pop().unwrap();
    assert_eq!(
        (&last["end"], &last["error"], &last["accepted"]),
        (&json!("failed"), &json!("timeout"), &json!(1))
    );
    // Before anything was answered it is a status.
    assert!(rest(&begin(&server)).starts_with("HTTP/1.1 408 "));
}

#[test]
fn each_line_is_acknowledged_at_once() {
    let server = TestServer::open(&[]);
    let mut stream = begin(&server);
    for n in 1..=3 {
        chunk(&mut stream, "{\"channel\":\"i\",\"data\":1}\n").unwrap();
        let ack = acks(&read_to(&stream, "}\n")).pop().unwrap();
        assert_eq!(ack, json!({"lines": n, "accepted": n, "refused": 0}));
    }
}

#[test]
fn streams_take_at_most_half_of_the_connections() {
    let server = TestServer::open(&["api.connections_max=4"]);
    let mut streams: Vec<_> = (0..2).map(|_| begin(&server)).collect();
    for stream in &mut streams {
        chunk(stream, "{\"channel\":\"i\",\"data\":1}\n").unwrap();
        read_to(stream, "}\n");
    }
    let (status, answer) = server.http("POST", "/api/ingest", "{\"channel\":\"i\",\"data\":1}\n");
    assert_eq!(status, 503, "{answer}");
    server.publish("i", json!(1));
}

#[test]
fn a_drain_ends_streams() {
    // Nobody is connected: the shards end at once.
    let server = TestServer::open(&[]);
    let mut stream = begin(&server);
    chunk(&mut stream, "{\"channel\":\"i\",\"data\":1}\n").unwrap();
    read_to(&stream, "}\n");
    server.drain();
    server.wait();
    let mut answer = String::new();
    let _ = (&stream).read_to_string(&mut answer);
    let last = acks(&answer).pop().unwrap();
    assert_eq!((&last["end"], &last["error"]), (&json!("failed"), &json!("draining")));
}
