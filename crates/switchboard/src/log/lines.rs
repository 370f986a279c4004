//! The queue between the threads that log and the thread that writes.
//!
//! The reader of the lines may stall, as a journal does while its disk hangs; that must block
//! neither a shard nor shutdown. The obvious choice, the crate tracing-appender, does not fit:
//! its guard prints to standard output when the queue is full at exit, and panics if that is
//! closed.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Maximum number of waiting lines; above it lines are dropped and counted.
const LINES_MAX: usize = 1_024;

/// A queue of lines for a writer that may block.
#[derive(Clone, Debug)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when there is a line to write.
    filled: Condvar,
    /// Notified when there is none, and none is being written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    is_writing: bool,
    dropped: u64,
}

impl Lines {
    /// Starts the writing thread, which ends with the process.
    pub(super) fn to(mut writer: impl Write + Send + 'static) -> Lines {
        let lines = Lines(Arc::default());
        let shared = Arc::clone(&lines.0);
        let write_all = move || {
            loop {
                let line = shared.next();
                // Errors are ignored: there is no other place to report them.
                let _ = writer.write_all(&line).and_then(|()| writer.flush());
            }
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(write_all)
            .expect("a thread starts");
        lines
    }

    /// Waits until all lines are written, at most for `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        drop(self.0.emptied.wait_timeout_while(self.0.queue(), patience, is_busy));
    }

    /// Returns the number of lines dropped because the queue was full.
    pub(super) fn dropped(&self) -> u64 {
        self.0.queue().dropped
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next line and takes it.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.queue();
        // Only now has the previous line been written: until here `flush` must wait for it.
        queue.is_writing = false;
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.is_writing = true;
                return line;
            }
            self.emptied.notify_all();
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Takes each write for a whole line, which is how the formatter writes. Never blocks: when the
/// queue is full the line is dropped.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.queue();
        if queue.lines.len() < LINES_MAX {
            queue.lines.push_back(line.to_vec());
        } else {
            queue.dropped += 1;
        }
        drop(queue);
        self.0.filled.notify_one();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
