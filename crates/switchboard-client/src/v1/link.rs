//! One connection: hello and welcome, frames in both directions, and the detection of a dead
//! peer.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use switchboard_proto::v1::{SUBPROTOCOL, ServerEvent, parse_server};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::{OpenError, Welcome};
use crate::connect::{self, CONNECT_TIMEOUT, ConnectError, ConnectOptions, Socket};
use crate::ending::Ending;

/// Added to the time in which the server should have pinged, for transmission.
const GRACE: Duration = Duration::from_secs(5);
/// Time without progress of a write after which the server counts as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the server's part of the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that has received its welcome.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    pub(super) opened_at: Instant,
    heard_at: Instant,
    /// After this silence the server is pinged, after twice this it counts as gone.
    patience: Duration,
    is_pinged: bool,
    /// Maximum length of a frame that the server accepts.
    pub(super) frame_len_max: u64,
    /// Number up to which this connection has acked.
    pub(super) acked_to: u64,
}

impl Link {
    /// Connects, sends the hello, and waits for the welcome.
    pub(super) async fn open(
        url: &str,
        options: &ConnectOptions,
        hello: String,
    ) -> Result<(Link, Welcome), OpenError> {
        let opened = async {
            let socket = connect::open(url, options, SUBPROTOCOL).await?;
            let now = Instant::now();
            let mut link = Link {
                socket,
                opened_at: now,
                heard_at: now,
                patience: CONNECT_TIMEOUT,
                is_pinged: false,
                frame_len_max: u64::MAX,
                acked_to: 0,
            };
            link.write([hello]).await.map_err(OpenError::Closed)?;
            loop {
                match link.hear().await.map_err(OpenError::Closed)? {
                    ServerEvent::Welcome(welcome) => {
                        link.frame_len_max = welcome.max_message_bytes;
                        link.acked_to = welcome.last_seq;
                        link.patience = Duration::from_millis(welcome.ping_every_ms) + GRACE;
                        return Ok((link, welcome));
                    }
                    // A newer server may send further frames.
                    _ => continue,
                }
            }
        };
        let limit = options.timeout;
        timeout(limit, opened).await.map_err(|_| ConnectError::Timeout(limit))?
    }

    /// Returns the next frame, or how the connection ended. Cancel safe.
    pub(super) async fn hear(&mut self) -> Result<ServerEvent, Ending> {
        loop {
            let patience = if self.is_pinged { self.patience * 2 } else { self.patience };
            let frame = match timeout_at(self.heard_at + patience, self.socket.next()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(Ending::broken(error)),
                Ok(None) => return Err(Ending::broken("no closing handshake")),
                Err(_) if self.is_pinged => return Err(Ending::broken("the server fell silent")),
                Err(_) => {
                    self.is_pinged = true;
                    // A failure shows up as the end of the connection.
                    let _ = self.socket.feed(Message::Ping(Bytes::new())).await;
                    continue;
                }
            };
            (self.heard_at, self.is_pinged) = (Instant::now(), false);
            match frame {
                Message::Text(text) => {
                    return parse_server(text.as_bytes()).map_err(Ending::broken);
                }
                Message::Close(frame) => {
                    // The codec has queued the answer, which should be sent if possible.
                    let _ = timeout(CLOSE_TIMEOUT, self.socket.flush()).await;
                    return Err(Ending::from_frame(frame.as_ref()));
                }
                // The codec queues pongs, and sends them with the next read.
                _ => {}
            }
        }
    }

    /// Writes frames in order.
    pub(super) async fn write(
        &mut self,
        frames: impl IntoIterator<Item = String>,
    ) -> Result<(), Ending> {
        let writing = async {
            for frame in frames {
                self.socket.feed(Message::text(frame)).await?;
            }
            self.socket.flush().await
        };
        match timeout(WRITE_TIMEOUT, writing).await {
            Ok(Ok(())) => Ok(()),
            // The close frame, if one came before, explains the failure better than the write
            // error.
            Ok(Err(error)) => Err(self.last_words().await.unwrap_or_else(|| Ending::broken(error))),
            Err(_) => Err(Ending::broken("the server takes nothing any more")),
        }
    }

    /// Returns the ending in a close frame that has arrived already.
    async fn last_words(&mut self) -> Option<Ending> {
        let words = async {
            loop {
                match self.socket.next().await? {
                    Ok(Message::Close(frame)) => return Some(Ending::from_frame(frame.as_ref())),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(CLOSE_TIMEOUT, words).await.ok().flatten()
    }

    /// Ends the connection by the closing handshake.
    pub(super) async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let closing = async {
            let _ = self.socket.close(Some(frame)).await;
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}
