//! The start of the shards: nobody is let in before all have put their devices into the directory.

use std::sync::{Condvar, Mutex, PoisonError};

/// Passed by all shards together; a [`std::sync::Barrier`] that one which fails does not leave closed.
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
    /// Awaits so many.
    pub(crate) fn new(shards: usize) -> Begun {
        let state = Mutex::new(State { awaited: shards, has_failed: false });
        Begun { state, changed: Condvar::new() }
    }

    /// Waits for the others; `false` when one of them failed, and there is nothing to serve.
    pub(super) fn pass(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.awaited -= 1;
        self.changed.notify_all();
        drop(state);
        self.wait()
    }

    /// As [`Begun::pass`], for somebody who is not awaited.
    pub(crate) fn wait(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| state.awaited > 0 && !state.has_failed;
        let state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.awaited == 0
    }

    /// A shard is gone. Once all have passed, that is nothing to wait for.
    pub(crate) fn end(&self) {
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
