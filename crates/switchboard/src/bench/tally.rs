//! Counts of messages sent and received, and of errors.

use serde::Serialize;

/// The counts of a run; everything but the first two must be zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Messages written to the sockets.
    pub sent: u64,
    /// Messages that arrived unchanged at the right device, each counted once.
    pub delivered: u64,
    /// Messages that had not arrived when the run ended, or were overtaken by a later one.
    pub lost: u64,
    /// Messages that arrived a second time, or after a later one.
    pub repeated: u64,
    /// Texts at a receiver that no sender sent.
    pub foreign: u64,
    /// Texts at a sender: the server refused a message.
    pub refused: u64,
    /// The first unexpected text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_complaint: Option<String>,
}

impl Tally {
    /// Returns true if every message so far arrived once, in order and unchanged.
    pub fn is_clean(&self) -> bool {
        self.lost + self.repeated + self.foreign + self.refused == 0
    }

    /// Stores the first complaint.
    pub(super) fn complain(&mut self, text: &[u8]) {
        const SHOWN: usize = 100;
        let shown = &text[..text.len().min(SHOWN)];
        self.first_complaint.get_or_insert_with(|| String::from_utf8_lossy(shown).into_owned());
    }
}

impl Tally {
    /// Returns the rows that are shown for it.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        if self.is_clean() {
            let verdict = format!("all {} came once and in order", self.delivered);
            return vec![("check", verdict)];
        }
        let Self { lost, repeated, foreign, refused, .. } = self;
        let counts = format!(
            "FAILED: {lost} lost, {repeated} repeated, {foreign} foreign, {refused} refused"
        );
        let complaint = self.first_complaint.iter().map(|text| ("first complaint", text.clone()));
        [("check", counts)].into_iter().chain(complaint).collect()
    }
}
