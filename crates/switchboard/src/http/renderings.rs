//! The text of `/metrics`, rendered once for all requests that wait for it at the same time.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use hyper::body::Bytes;

use crate::metrics::Format;

/// The latest text in each format. There is one rendering at a time.
#[derive(Debug, Default)]
pub(super) struct Renderings(Mutex<[Option<Rendering>; Format::ALL.len()]>);

#[derive(Debug)]
struct Rendering {
    began_at: Instant,
    text: Bytes,
}

impl Renderings {
    /// Returns a text whose rendering began after `asked_at`, so that it shows all that was counted
    /// before; renders it if there is none.
    pub(super) fn since(
        &self,
        asked_at: Instant,
        format: Format,
        render: impl FnOnce() -> String,
    ) -> Bytes {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = &mut latest[format as usize];
        if let Some(rendering) = latest.as_ref().filter(|latest| latest.began_at > asked_at) {
            return rendering.text.clone();
        }
        let began_at = Instant::now();
        let text = Bytes::from(render());
        latest.insert(Rendering { began_at, text }).text.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of many requests once had a rendering of its own, one after the other.
    #[test]
    fn requests_that_wait_together_share_a_text_and_a_later_one_gets_a_new_one() {
        let renderings = Renderings::default();
        let ask =
            |asked_at, format, text: &str| renderings.since(asked_at, format, || text.to_owned());
        let together = [Instant::now(), Instant::now()];
        assert_eq!(ask(together[0], Format::Text, "first"), "first");
        assert_eq!(ask(together[1], Format::Text, "second"), "first");
        assert_eq!(ask(together[1], Format::OpenMetrics, "another"), "another");
        assert_eq!(ask(Instant::now(), Format::Text, "third"), "third");
        assert_eq!(ask(together[0], Format::Text, "fourth"), "third");
    }
}
