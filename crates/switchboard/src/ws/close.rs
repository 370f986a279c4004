//! Close codes (RFC 6455 section 7.4) and the frame that carries one.

use super::frame::{Opcode, write_server_frame};

/// A status code of the closing handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// The server is going down.
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    /// The peer broke RFC 6455.
    pub const PROTOCOL_ERROR: CloseCode = CloseCode(1002);
    /// A message has no valid content: text that is not UTF-8, or damaged compression.
    pub const INVALID_PAYLOAD: CloseCode = CloseCode(1007);
    /// The peer broke a rule of ours that has no code of its own.
    pub const POLICY_VIOLATION: CloseCode = CloseCode(1008);
    /// A message was larger than `max_message_bytes`.
    pub const MESSAGE_TOO_BIG: CloseCode = CloseCode(1009);
    /// The server cannot do this now (IANA's registry of close codes).
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013);
    /// The device did not read what was sent to it.
    pub const TOO_SLOW: CloseCode = CloseCode(4508);

    /// Returns true if a peer may send this code: the registered ones except those that never
    /// travel (1005, 1006, 1015), and the ranges for libraries (3000) and applications (4000).
    pub fn may_be_sent(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

/// Longest reason: the 125 bytes of a control frame less the two of the code.
const REASON_MAX: usize = 123;

/// Writes a close frame; a reason over 123 bytes is truncated at a character boundary.
pub fn write_close(out: &mut Vec<u8>, code: CloseCode, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(REASON_MAX)];
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.0.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    write_server_frame(out, Opcode::Close, &payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        write_close(&mut out, CloseCode::NORMAL, &"é".repeat(100));
        assert_eq!(out[1], 2 + 122);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }
}
