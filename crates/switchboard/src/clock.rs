//! The wall clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The clock stands before 1970, where no time of a message can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the clock of this machine stands before 1970: set it")]
pub(crate) struct Before1970;

/// Since 1970.
pub(crate) fn now() -> Result<Duration, Before1970> {
    since_1970(SystemTime::now())
}

fn since_1970(time: SystemTime) -> Result<Duration, Before1970> {
    time.duration_since(UNIX_EPOCH).map_err(|_| Before1970)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was "second time provided was later than self".
    #[test]
    fn a_clock_that_was_never_set_is_named() {
        let said = since_1970(UNIX_EPOCH - Duration::from_secs(1)).unwrap_err().to_string();
        assert!(said.contains("before 1970"), "{said}");
        assert_eq!(since_1970(UNIX_EPOCH + Duration::from_secs(1)), Ok(Duration::from_secs(1)));
    }
}
