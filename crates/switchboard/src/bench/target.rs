//! The address of the server under load.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// The server's address, which is on this machine, and its use of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// A loopback address.
    pub address: SocketAddr,
    /// True for `wss://`; any certificate is accepted.
    pub tls: bool,
}

/// Reason why a text is not a target.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// Neither `ws://` nor `wss://`, or not followed by an address and a port.
    #[error("expected ws://ADDR:PORT or wss://ADDR:PORT with a numeric address or localhost")]
    Malformed,
    /// Load is put only on servers of this machine.
    #[error("{0} is not a loopback address; load is only put on this machine's own servers")]
    NotLoopback(SocketAddr),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (tls, rest) = match text.split_once("://") {
            Some(("ws", rest)) => (false, rest),
            Some(("wss", rest)) => (true, rest),
            None => (false, text),
            Some(_) => return Err(TargetError::Malformed),
        };
        let address = parse_address(rest.trim_end_matches('/')).ok_or(TargetError::Malformed)?;
        if !address.ip().is_loopback() {
            return Err(TargetError::NotLoopback(address));
        }
        Ok(Self { address, tls })
    }
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
        None => text.parse().ok(),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "wss" } else { "ws" }, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_url_or_a_bare_address() {
        let plain = Target { address: ([127, 0, 0, 1], 8080).into(), tls: false };
        assert_eq!("ws://127.0.0.1:8080".parse(), Ok(plain));
        assert_eq!("localhost:8080".parse(), Ok(plain));
        assert_eq!("wss://127.0.0.1:8080/".parse(), Ok(Target { tls: true, ..plain }));
        assert_eq!("http://127.0.0.1:80".parse::<Target>(), Err(TargetError::Malformed));
        assert_eq!("ws://127.0.0.1".parse::<Target>(), Err(TargetError::Malformed));
    }

    #[test]
    fn only_loopback_is_a_target() {
        let elsewhere = "192.0.2.1:8080".parse().unwrap();
        let refused = "ws://192.0.2.1:8080".parse::<Target>();
        assert_eq!(refused, Err(TargetError::NotLoopback(elsewhere)));
        assert!("ws://[::1]:8080".parse::<Target>().is_ok());
    }
}
