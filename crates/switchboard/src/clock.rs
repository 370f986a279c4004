//! The wall clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The clock is before 1970, which no timestamp of a message can express.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the clock of this machine stands before 1970: set it")]
pub(crate) struct Before1970;

/// Returns the time since 1970.
pub(crate) fn now() -> Result<Duration, Before1970> {
    since_1970(SystemTime::now())
}

fn since_1970(time: SystemTime) -> Result<Duration, Before1970> {
    time.duration_since(UNIX_EPOCH).map_err(|_| Before1970)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message used to be "second time provided was later than self".
    #[test]
    fn a_clock_that_was_never_set_is_named() {
        let said = since_1970(UNIX_EPOCH - Duration::from_secs(1)).unwrap_err().to_string();
        assert!(said.contains("before 1970"), "{said}");
        assert_eq!(since_1970(UNIX_EPOCH + Duration::from_secs(1)), Ok(Duration::from_secs(1)));
    }
}
