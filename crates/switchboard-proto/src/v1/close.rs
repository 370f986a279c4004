//! WebSocket close codes of v1, beyond those of RFC 6455, which leaves 4000 to 4999 to applications
//! (section 7.4.2).

/// The server cannot take this connection now (RFC 6455's registry of close codes).
pub const TRY_AGAIN_LATER: u16 = 1013;
/// The first frame was no `hello`, or the tenth bad frame came within a minute.
pub const PROTOCOL_ERROR: u16 = 4400;
/// The token is wrong or has expired, or there is none and one is needed.
pub const NOT_AUTHENTICATED: u16 = 4401;
/// No `hello` came within [`HELLO_TIMEOUT`](super::HELLO_TIMEOUT).
pub const NO_HELLO: u16 = 4408;
/// A newer connection has taken over the device.
pub const TAKEN_OVER: u16 = 4409;
/// The device does not read what is pushed to it. Its mailbox keeps everything.
pub const TOO_SLOW: u16 = 4508;

/// Returns the name of a close code in reasons and logs; `None` if it is none of v1's own.
pub const fn name(code: u16) -> Option<&'static str> {
    Some(match code {
        PROTOCOL_ERROR => "protocol error",
        NOT_AUTHENTICATED => "not authenticated",
        NO_HELLO => "no hello in time",
        TAKEN_OVER => "taken over",
        TOO_SLOW => "too slow a reader",
        _ => return None,
    })
}
