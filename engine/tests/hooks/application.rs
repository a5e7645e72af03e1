//! An application, written by hand: it can answer whatever no HTTP library would.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A request that has come.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Heard {
    /// A header field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What it does.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// Answers with a status and a body.
    Answer(u16, String),
    /// Writes these bytes and closes.
    Raw(String),
    /// Says nothing more.
    Hang,
    /// Writes a head, and the body a byte at a time, for ever.
    Drip,
    /// Writes a body of a gigabyte, as fast as it is taken.
    Flood,
    /// Answers with this when [`Application::go_on`] is called.
    Later(u16, String),
}

impl Does {
    pub(crate) fn ok(body: &str) -> Does {
        Does::Answer(200, body.into())
    }
}

type Script = dyn Fn(&Heard, usize) -> Does;

pub(crate) struct Application {
    pub(crate) address: SocketAddr,
    pub(crate) heard: RefCell<Vec<Heard>>,
    /// Connections that were ever opened.
    pub(crate) connections: Cell<usize>,
    /// Requests under way, and the most there were at once.
    pub(crate) under_way: Cell<usize>,
    pub(crate) most: Cell<usize>,
    /// Bytes of [`Does::Flood`] and [`Does::Drip`] that were taken.
    pub(crate) taken: Cell<u64>,
    script: RefCell<Rc<Script>>,
    changed: Notify,
    going_on: Notify,
}

impl Application {
    /// Does what `script` says to each request; it is told how many came before.
    pub(crate) async fn start(script: impl Fn(&Heard, usize) -> Does + 'static) -> Rc<Application> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let application = Rc::new(Application {
            address: listener.local_addr().unwrap(),
            heard: RefCell::default(),
            connections: Cell::new(0),
            under_way: Cell::new(0),
            most: Cell::new(0),
            taken: Cell::new(0),
            script: RefCell::new(Rc::new(script)),
            changed: Notify::new(),
            going_on: Notify::new(),
        });
        let own = application.clone();
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                own.connections.set(own.connections.get() + 1);
                let own = own.clone();
                tokio::task::spawn_local(async move { own.serve(stream).await });
            }
        });
        application
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on it does something else.
    pub(crate) fn becomes(&self, script: impl Fn(&Heard, usize) -> Does + 'static) {
        self.script.replace(Rc::new(script));
    }

    /// Lets go of all that wait with [`Does::Later`].
    pub(crate) fn go_on(&self) {
        self.going_on.notify_waiters();
    }

    pub(crate) fn count(&self) -> usize {
        self.heard.borrow().len()
    }

    pub(crate) fn last(&self) -> Heard {
        self.heard.borrow().last().unwrap().clone()
    }

    /// Waits until something holds.
    pub(crate) async fn until(&self, holds: impl Fn(&Application) -> bool) {
        loop {
            let changed = self.changed.notified();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut bytes = Vec::new();
        loop {
            let heard = read(&mut stream, &mut bytes).await?;
            let script = self.script.borrow().clone();
            let does = script(&heard, self.count());
            self.heard.borrow_mut().push(heard);
            self.under_way.set(self.under_way.get() + 1);
            self.most.set(self.most.get().max(self.under_way.get()));
            let done = {
                let act = self.act(&mut stream, does);
                // Who is told that it was heard may let it go on: it listens to that by then.
                tokio::pin!(act);
                let first = futures_util::poll!(&mut act);
                self.changed.notify_waiters();
                match first {
                    std::task::Poll::Ready(done) => done,
                    std::task::Poll::Pending => act.await,
                }
            };
            self.under_way.set(self.under_way.get() - 1);
            self.changed.notify_waiters();
            done?;
        }
    }

    async fn act(&self, stream: &mut TcpStream, does: Does) -> Option<()> {
        match does {
            Does::Answer(status, body) => answer(stream, status, &body).await,
            Does::Later(status, body) => {
                self.going_on.notified().await;
                answer(stream, status, &body).await
            }
            Does::Raw(bytes) => {
                stream.write_all(bytes.as_bytes()).await.ok()?;
                None
            }
            Does::Hang => {
                // Until the other side has had enough.
                while stream.read(&mut [0; 64]).await.ok()? > 0 {}
                None
            }
            Does::Drip => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n{")
                    .await
                    .ok()?;
                loop {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    stream.write_all(b" ").await.ok()?;
                    self.taken.set(self.taken.get() + 1);
                }
            }
            Does::Flood => {
                let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head).await.ok()?;
                let chunk = format!("10000\r\n{}\r\n", " ".repeat(1 << 16));
                while self.taken.get() < 1 << 30 {
                    stream.write_all(chunk.as_bytes()).await.ok()?;
                    self.taken.set(self.taken.get() + (1 << 16));
                }
                None
            }
        }
    }
}

async fn answer(stream: &mut TcpStream, status: u16, body: &str) -> Option<()> {
    let length = match status {
        // RFC 9110, section 8.6: no such field here.
        204 => String::new(),
        _ => format!("content-length: {}\r\n", body.len()),
    };
    let head = format!("HTTP/1.1 {status} Whatever\r\n{length}\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await.ok()
}

/// The next request; `None` at the end.
async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Heard> {
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut heard = Heard { head, body: String::new() };
            let length = heard.field("content-length").map_or(0, |length| length.parse().unwrap());
            if let Some(body) = bytes.get(end + 4..end + 4 + length) {
                heard.body = String::from_utf8(body.to_vec()).unwrap();
                bytes.drain(..end + 4 + length);
                return Some(heard);
            }
        }
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.ok().filter(|&read| read > 0)?;
        bytes.extend_from_slice(&piece[..read]);
    }
}
