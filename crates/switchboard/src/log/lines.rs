//! The queue between those who log and the thread that writes.
//!
//! Whoever reads the lines may stall, as a journal does whose disk hangs, and must stop neither a shard
//! nor the end of the server. The crate tracing-appender would be the choice for this, but its guard
//! prints to standard output when it finds the queue full at the end, and panics where that is closed.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines that wait; above it they are dropped and counted.
const LINES_MAX: usize = 1_024;

/// Lines on their way to a writer that may block.
#[derive(Clone, Debug)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is a line to write.
    filled: Condvar,
    /// There is none, and none is being written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    is_writing: bool,
    dropped: u64,
}

impl Lines {
    /// Starts the thread that writes; it ends with the process.
    pub(super) fn to(mut writer: impl Write + Send + 'static) -> Lines {
        let lines = Lines(Arc::default());
        let shared = Arc::clone(&lines.0);
        let write_all = move || {
            loop {
                let line = shared.next();
                // There is nobody who could be told.
                let _ = writer.write_all(&line).and_then(|()| writer.flush());
            }
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(write_all)
            .expect("a thread starts");
        lines
    }

    /// Waits until all lines are written, at most as long.
    pub(super) fn flush(&self, patience: Duration) {
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        drop(self.0.emptied.wait_timeout_while(self.0.queue(), patience, is_busy));
    }

    /// Returns how many lines found the queue full.
    pub(super) fn dropped(&self) -> u64 {
        self.0.queue().dropped
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next line, once there is one.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.queue();
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

/// Takes each write as a whole line, which is how the formatter writes.
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
