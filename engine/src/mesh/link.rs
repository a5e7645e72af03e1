//! One link to another node: a TCP connection, possibly with TLS, and two tasks that read and write its records.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::frame::{FRAME_BYTES_MAX, Frame};
use super::handshake::{GREETING_BYTES, Greeting, Handshake, PROOF_BYTES, Side, Signer, TAG_BYTES};
use super::tls::Ends;
use crate::registry::views::Instance;

/// How long the other one has to say who it is, and a connection to be made.
const HANDSHAKE_TIME: Duration = Duration::from_secs(2);
/// Longest record in bytes: one frame, or some of this together.
const RECORD_BYTES_MAX: usize = FRAME_BYTES_MAX + 4;
/// Read at once, at least.
const READ_BYTES: usize = 64 * 1024;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The kernel's, or that the other one has ended it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Its certificate, or ours, is not one that is taken, or only one of both speaks TLS.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// Nothing is heard.
    #[error("it does not answer")]
    Timeout,
    /// It was ended to make room.
    #[error("it said too little while many others came")]
    Crowded,
    /// It speaks something else.
    #[error("what it says is nothing that a node says")]
    Foreign,
    /// Its key is another.
    #[error("it has another key (cluster.key)")]
    Key,
    /// Another process is there.
    #[error("another process is there by now")]
    Other,
    /// What it has said was changed on the way, or cannot be read.
    #[error("what came was not what a node has sent")]
    Broken,
}

/// What a link tells who holds it.
#[derive(Debug)]
pub(super) enum Event {
    /// The number of the link, and what has come.
    Heard(u64, Vec<Frame>, usize),
    /// It has ended.
    Ended(u64, LinkError),
}

/// A connection, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Both ways of a connection whose other end has shown the key.
pub(super) struct Open {
    pub(super) peer: Instance,
    stream: Box<dyn Stream>,
    reads: Signer,
    writes: Signer,
}

/// Calls a node.
pub(super) async fn call(
    address: &str,
    own: Instance,
    peer: Instance,
    key: &[u8],
    tls: Option<&Ends>,
) -> Result<Open, LinkError> {
    let greeted = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.call(address, stream).await.map_err(LinkError::Tls)?),
        };
        let caller = Greeting::new(own);
        stream.write_all(caller.bytes()).await?;
        stream.flush().await?;
        let called = greeting(&mut stream).await?;
        if called.instance() != peer {
            return Err(LinkError::Other);
        }
        let handshake = Handshake { key, caller: &caller, called: &called };
        stream.write_all(&handshake.proof(Side::Caller)).await?;
        stream.flush().await?;
        let mut proof = [0; PROOF_BYTES];
        stream.read_exact(&mut proof).await?;
        if !handshake.is_proof(Side::Called, &proof) {
            return Err(LinkError::Key);
        }
        let (reads, writes) = (handshake.signer(Side::Called), handshake.signer(Side::Caller));
        Ok(Open { peer, stream, reads, writes })
    };
    timeout(HANDSHAKE_TIME, greeted).await.unwrap_or(Err(LinkError::Timeout))
}

/// Answers a node that calls.
pub(super) async fn answer(
    stream: TcpStream,
    own: Instance,
    key: &[u8],
    tls: Option<&Ends>,
) -> Result<Open, LinkError> {
    let greeted = async {
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.answer(stream).await.map_err(LinkError::Tls)?),
        };
        let caller = greeting(&mut stream).await?;
        let called = Greeting::new(own);
        let handshake = Handshake { key, caller: &caller, called: &called };
        stream.write_all(called.bytes()).await?;
        stream.flush().await?;
        let mut proof = [0; PROOF_BYTES];
        stream.read_exact(&mut proof).await?;
        if !handshake.is_proof(Side::Caller, &proof) {
            return Err(LinkError::Key);
        }
        // Not before: who has no key is given nothing to try keys on.
        stream.write_all(&handshake.proof(Side::Called)).await?;
        stream.flush().await?;
        let (reads, writes) = (handshake.signer(Side::Caller), handshake.signer(Side::Called));
        Ok(Open { peer: caller.instance(), stream, reads, writes })
    };
    timeout(HANDSHAKE_TIME, greeted).await.unwrap_or(Err(LinkError::Timeout))
}

async fn greeting(stream: &mut (dyn Stream + '_)) -> Result<Greeting, LinkError> {
    let mut bytes = [0; GREETING_BYTES];
    stream.read_exact(&mut bytes).await?;
    Greeting::read(bytes).ok_or(LinkError::Foreign)
}

/// A link whose tasks run; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) number: u64,
    out: mpsc::UnboundedSender<Bytes>,
    unsent: Arc<AtomicUsize>,
    began: Instant,
    /// When something came last, in milliseconds since it began.
    heard_ms: Arc<AtomicU64>,
    tasks: [tokio::task::AbortHandle; 2],
}

impl Link {
    /// Starts the tasks.
    pub(super) fn start(open: Open, number: u64, events: mpsc::Sender<Event>) -> Link {
        let (read, write) = tokio::io::split(open.stream);
        let (out, queue) = mpsc::unbounded_channel();
        let (unsent, heard_ms) = (Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
        let (began, heard) = (Instant::now(), heard_ms.clone());
        let writes = write_all(write, open.writes, queue, unsent.clone());
        let ended = events.clone();
        let writer = tokio::spawn(async move {
            if let Err(e) = writes.await {
                let _ = ended.send(Event::Ended(number, e.into())).await;
            }
        });
        let reader = tokio::spawn(async move {
            let why = match read_all(read, open.reads, number, &events, || {
                heard.store(since(began), Ordering::Relaxed)
            })
            .await
            {
                Ok(()) => return,
                Err(why) => why,
            };
            let _ = events.send(Event::Ended(number, why)).await;
        });
        Link {
            number,
            out,
            unsent,
            began,
            heard_ms,
            tasks: [writer.abort_handle(), reader.abort_handle()],
        }
    }

    /// Sends frames, written one behind the other; together at most what a record holds.
    pub(super) fn send(&self, frames: Bytes) {
        self.unsent.fetch_add(frames.len(), Ordering::Relaxed);
        let _ = self.out.send(frames);
    }

    /// For how long nothing has come, be it a part of a record.
    pub(super) fn silent_for(&self) -> Duration {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed);
        Duration::from_millis(since(self.began).saturating_sub(heard_ms))
    }

    /// Bytes that the kernel has not taken yet.
    pub(super) fn unsent(&self) -> usize {
        self.unsent.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

fn since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

async fn write_all(
    mut stream: WriteHalf<Box<dyn Stream>>,
    mut signer: Signer,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
    unsent: Arc<AtomicUsize>,
) -> io::Result<()> {
    while let Some(frames) = queue.recv().await {
        let length = u32::try_from(frames.len()).unwrap_or(u32::MAX).to_be_bytes();
        let tag = signer.sign(&frames);
        let mut record = Buf::chain(Buf::chain(&length[..], &frames[..]), &tag[..]);
        stream.write_all_buf(&mut record).await?;
        // Without TLS that is nothing.
        stream.flush().await?;
        unsent.fetch_sub(frames.len(), Ordering::Relaxed);
    }
    Ok(())
}

/// Ends without an error once nobody listens any more.
async fn read_all(
    mut stream: ReadHalf<Box<dyn Stream>>,
    mut signer: Signer,
    number: u64,
    events: &mpsc::Sender<Event>,
    heard: impl Fn(),
) -> Result<(), LinkError> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(LinkError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        heard();
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while let Some(length) = buffer.get(..4) {
            let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            if length > RECORD_BYTES_MAX {
                return Err(LinkError::Broken);
            }
            if buffer.len() < 4 + length + TAG_BYTES {
                break;
            }
            let record = buffer.split_to(4 + length + TAG_BYTES).freeze();
            let (record, tag) = (record.slice(4..4 + length), record.slice(4 + length..));
            if !signer.is_signed(&record, &tag) {
                return Err(LinkError::Broken);
            }
            bytes += record.len();
            read_frames(record, &mut frames)?;
        }
        if !frames.is_empty() && events.send(Event::Heard(number, frames, bytes)).await.is_err() {
            return Ok(());
        }
    }
}

fn read_frames(mut record: Bytes, frames: &mut Vec<Frame>) -> Result<(), LinkError> {
    while record.has_remaining() {
        let length = record.try_get_u32().map_err(|_| LinkError::Broken)? as usize;
        if length > record.len() {
            return Err(LinkError::Broken);
        }
        frames.push(Frame::read(record.split_to(length)).ok_or(LinkError::Broken)?);
    }
    Ok(())
}
