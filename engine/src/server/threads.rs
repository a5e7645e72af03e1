//! Threads that are started together: whether all of them came up, and which ends first.

use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};

use super::ServeError;
use crate::ids::ShardId;

/// What a thread says.
enum Word<T> {
    /// It is ready, and this is how the others reach it.
    Ready(ShardId, T),
    /// It has ended.
    Ended(ShardId, Result<(), ServeError>),
}

/// The threads of all shards.
pub(super) struct Threads<T> {
    handles: Vec<JoinHandle<()>>,
    words: Receiver<Word<T>>,
    /// Cloned for each thread.
    voice: Sender<Word<T>>,
}

/// What one thread speaks with. However it ends, it says so.
pub(super) struct Voice<T> {
    id: ShardId,
    words: Sender<Word<T>>,
}

impl<T> Voice<T> {
    /// Tells that this thread is ready. Once at most: there is room for no more.
    pub(super) fn ready(&self, end: T) {
        let _ = self.words.send(Word::Ready(self.id, end));
    }
}

impl<T> Drop for Voice<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = ServeError::Shard(self.id, "it panicked".into());
            let _ = self.words.send(Word::Ended(self.id, Err(why)));
        }
    }
}

impl<T: Send + 'static> Threads<T> {
    /// Room for the words of so many threads.
    pub(super) fn new(count: u16) -> Threads<T> {
        let (voice, words) = crossbeam_channel::bounded(2 * usize::from(count));
        Threads { handles: Vec::new(), words, voice }
    }

    /// Starts a thread. What `run` returns is its end.
    pub(super) fn spawn(
        &mut self,
        id: ShardId,
        run: impl FnOnce(&Voice<T>) -> Result<(), ServeError> + Send + 'static,
    ) -> Result<(), ServeError> {
        let voice = Voice { id, words: self.voice.clone() };
        let body = move || {
            let result = run(&voice);
            let _ = voice.words.send(Word::Ended(id, result));
        };
        let thread = std::thread::Builder::new().name(format!("shard-{id}"));
        self.handles.push(thread.spawn(body).map_err(ServeError::Thread)?);
        Ok(())
    }

    /// Waits until all are ready: what they said, by number. `Err` as soon as one has ended instead.
    pub(super) fn all_ready(&self) -> Result<Vec<T>, ServeError> {
        let mut ends = Vec::new();
        while ends.len() < self.handles.len() {
            match self.next()? {
                Word::Ready(id, end) => ends.push((id, end)),
                Word::Ended(id, Ok(())) => {
                    return Err(ServeError::Shard(id, "it ended before it served".into()));
                }
                Word::Ended(_, Err(e)) => return Err(e),
            }
        }
        ends.sort_by_key(|(id, _)| *id);
        Ok(ends.into_iter().map(|(_, end)| end).collect())
    }

    /// Waits until all have ended well, or the first one has not.
    pub(super) fn wait(self) -> Result<(), ServeError> {
        let mut running = self.handles.len();
        while running > 0 {
            if let Word::Ended(_, result) = self.next()? {
                result?;
                running -= 1;
            }
        }
        for handle in self.handles {
            // It has said how it ended.
            let _ = handle.join();
        }
        Ok(())
    }

    fn next(&self) -> Result<Word<T>, ServeError> {
        self.words.recv().map_err(|e| ServeError::Thread(io::Error::other(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads; the first serves until the first sender returned is dropped, the second does this once it is
    /// given a receiver that is released by the second sender.
    fn threads(
        second: fn(&Voice<u8>, &Receiver<()>) -> Result<(), ServeError>,
    ) -> (Threads<u8>, Sender<()>, Sender<()>) {
        let (end, ended) = crossbeam_channel::bounded::<()>(1);
        let (release, released) = crossbeam_channel::bounded::<()>(1);
        let mut threads = Threads::new(2);
        let serve = move |voice: &Voice<u8>| {
            voice.ready(0);
            let _ = ended.recv();
            Ok(())
        };
        threads.spawn(ShardId(0), serve).unwrap();
        threads.spawn(ShardId(1), move |voice| second(voice, &released)).unwrap();
        (threads, end, release)
    }

    #[test]
    fn a_shard_that_fails_ends_the_wait_while_others_serve() {
        let (threads, _end, release) = threads(|voice, released| {
            voice.ready(1);
            let _ = released.recv();
            Err(ServeError::Shard(ShardId(1), "its ring broke".into()))
        });
        assert_eq!(threads.all_ready().unwrap(), [0, 1]);
        drop(release);
        assert_eq!(threads.wait().unwrap_err().to_string(), "shard 1 ended: its ring broke");
    }

    #[test]
    fn a_shard_that_panics_ends_the_wait_while_others_serve() {
        let (threads, _end, release) = threads(|voice, released| {
            voice.ready(1);
            let _ = released.recv();
            panic!("a broken invariant")
        });
        threads.all_ready().unwrap();
        drop(release);
        assert_eq!(threads.wait().unwrap_err().to_string(), "shard 1 ended: it panicked");
    }

    #[test]
    fn a_shard_that_is_never_ready_ends_the_start() {
        let (failing, _end, _) =
            threads(|_, _| Err(ServeError::Shard(ShardId(1), "no ring".into())));
        assert_eq!(failing.all_ready().unwrap_err().to_string(), "shard 1 ended: no ring");
        let (panicking, _end, _) = threads(|_, _| panic!("before it is ready"));
        assert_eq!(panicking.all_ready().unwrap_err().to_string(), "shard 1 ended: it panicked");
        let (leaving, _end, _) = threads(|_, _| Ok(()));
        assert!(leaving.all_ready().unwrap_err().to_string().contains("before it served"));
    }

    #[test]
    fn the_wait_ends_when_all_have_ended_well() {
        let (threads, end, release) = threads(|voice, released| {
            voice.ready(1);
            let _ = released.recv();
            Ok(())
        });
        threads.all_ready().unwrap();
        drop((end, release));
        threads.wait().unwrap();
    }
}
