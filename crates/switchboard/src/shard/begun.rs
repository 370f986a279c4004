//! The start of the shards: no connection is accepted before all have put their devices into the
//! directory.

use std::sync::{Condvar, Mutex, PoisonError};

/// A barrier that all shards pass together. Unlike [`std::sync::Barrier`] it also opens if one
/// fails.
#[derive(Debug)]
pub(crate) struct Begun {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    awaited: usize,
    has_failed: bool,
}

impl Begun {
    /// Returns a barrier for this many shards.
    pub(crate) fn new(shards: usize) -> Begun {
        let state = Mutex::new(State { awaited: shards, has_failed: false });
        Begun { state, changed: Condvar::new() }
    }

    /// Waits for the others; false if one of them failed, and there is nothing to serve.
    pub(super) fn pass(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.awaited -= 1;
        self.changed.notify_all();
        drop(state);
        self.wait()
    }

    /// As [`Begun::pass`], for a thread that the others do not wait for.
    pub(crate) fn wait(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| state.awaited > 0 && !state.has_failed;
        let state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.awaited == 0
    }

    /// Notes that a shard is gone, so that the others do not wait for it.
    pub(crate) fn end(&self) {
        // Called by every shard that ends. Once all have passed, `awaited` is 0 and this
        // changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner).has_failed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pass_together_or_learn_that_one_failed() {
        let (whole, failed) = (Begun::new(3), Begun::new(3));
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..2).map(|_| scope.spawn(|| (whole.pass(), failed.pass()))).collect();
            assert!(whole.pass());
            failed.end();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), (true, false));
            }
        });
    }
}
