//! One connected device.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use switchboard_proto::DeviceId;
use switchboard_proto::text::Info;
use switchboard_proto::v1::DeviceRef;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Bytes, Message};

use crate::connect::{self, CONNECT_TIMEOUT, ConnectError, Options, Socket};
use crate::event::{Ending, Event, Refusal};

/// A server that is silent this long, though it was pinged halfway, is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Events that may wait for [`Client::next`]; at this many [`Client::send`] refuses to send.
///
/// A send that is under way still keeps what arrives until its answer, which the bound of the
/// server's out queue limits.
pub const WAITING_EVENTS_MAX: usize = 1024;

/// Time that [`Client::close`] gives the server for its part of the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A device, connected from [`connect`](Client::connect) until it is dropped or closed.
///
/// Pings are answered while [`next`](Client::next) or [`send`](Client::send) is awaited; a client
/// that awaits neither for long is taken for gone by the server.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    welcome: Info,
    /// What arrived while an answer was awaited.
    waiting: VecDeque<Event>,
    state: State,
    /// What the server's close frame said, or how else the connection ended.
    end: Option<Ending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Something was heard from the server lately.
    Live,
    /// The server was silent and has been pinged.
    Pinged,
    /// The connection is over.
    Ended,
}

/// Why a text was not, or perhaps not, delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The server refused it; it was not delivered.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection ended before the server's answer. Unless it had ended before the call, or
    /// [for the text itself](Ending::is_refusal), the text may have been delivered.
    #[error("{0}{doubt}", doubt = if .0.is_refusal() { "" } else { "; whether it was delivered is unknown" })]
    Closed(Ending),
    /// [`WAITING_EVENTS_MAX`] events wait for [`Client::next`]; nothing was sent.
    #[error("{WAITING_EVENTS_MAX} events wait to be read")]
    EventsWaiting,
}

impl Client {
    /// Connects to `url` (`ws://` or `wss://`, the latter trusting the system's authorities) and
    /// waits for the welcome.
    pub async fn connect(url: &str) -> Result<Client, ConnectError> {
        Client::connect_with(url, &Options::default()).await
    }

    /// [`connect`](Client::connect) with options.
    pub async fn connect_with(url: &str, options: &Options) -> Result<Client, ConnectError> {
        let connected = async {
            let socket = connect::open(url, options, None).await?;
            let welcome = Info { id: DeviceId::new(0), listed: Vec::new(), more: 0 };
            let (waiting, state) = (VecDeque::new(), State::Live);
            let mut client = Client { socket, welcome, waiting, state, end: None };
            match client.read().await {
                Event::Info(welcome) => Ok(Client { welcome, ..client }),
                Event::Closed(end) if end.code == 1006 => {
                    Err(ConnectError::Transport(tungstenite::Error::ConnectionClosed))
                }
                _ => Err(ConnectError::NoWelcome),
            }
        };
        timeout(CONNECT_TIMEOUT, connected).await.map_err(|_| ConnectError::Timeout)?
    }

    /// The id by which other devices reach this one, until the connection ends.
    pub fn id(&self) -> DeviceId {
        self.welcome.id
    }

    /// What the server said on open: the own id and who was connected then.
    pub fn welcome(&self) -> &Info {
        &self.welcome
    }

    /// Sends `text` to the device `to`, an id or a name, and waits until the server has handed it
    /// over or put it into the device's mailbox.
    ///
    /// The protocol answers a delivered text with silence, so `help` is sent behind it and its
    /// answer shows that no refusal came. Handed over is not read: the other device may end before
    /// it reads. What arrives meanwhile waits for [`next`](Client::next).
    ///
    /// Not cancel safe: a send that was given up may have been delivered, and its answers come as
    /// events.
    pub async fn send<'a>(
        &mut self,
        to: impl Into<DeviceRef<'a>>,
        text: &str,
    ) -> Result<(), SendError> {
        let to = to.into();
        if self.waiting.len() >= WAITING_EVENTS_MAX {
            return Err(SendError::EventsWaiting);
        }
        if let (State::Ended, Some(end)) = (self.state, &self.end) {
            return Err(SendError::Closed(end.clone()));
        }
        // A failed write shows as the connection's end, which reading explains better.
        let written = self.write_with_barrier(format!("send,{to},{text}")).await;
        let mut verdict = Ok(());
        loop {
            match self.read().await {
                Event::Info(_) => return verdict,
                // To the server a name that nobody has is no destination.
                Event::Refused(Refusal::Unreadable) if matches!(to, DeviceRef::Name(_)) => {
                    verdict = Err(SendError::Refused(Refusal::NoSuchDevice));
                }
                Event::Refused(refusal) => verdict = Err(SendError::Refused(refusal)),
                Event::Closed(mut end) => {
                    if let (1006, Err(e)) = (end.code, &written) {
                        end.reason = e.to_string();
                    }
                    self.waiting.push_back(Event::Closed(end.clone()));
                    return verdict.and(Err(SendError::Closed(end)));
                }
                other => self.waiting.push_back(other),
            }
        }
    }

    /// Asks for the connected devices; they come as [`Event::Info`].
    pub async fn ask_info(&mut self) {
        // A failed write shows as the connection's end in `next`.
        let _ = self.socket.send(Message::text("help")).await;
    }

    /// The next event; `None` after [`Event::Closed`]. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        match self.waiting.pop_front() {
            Some(event) => Some(event),
            None if self.state == State::Ended => None,
            None => Some(self.read().await),
        }
    }

    /// Ends the connection by the closing handshake; gives the server 2 s for its part.
    pub async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let closing = async {
            let _ = self.socket.close(Some(frame)).await;
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }

    async fn write_with_barrier(&mut self, command: String) -> Result<(), tungstenite::Error> {
        self.socket.feed(Message::text(command)).await?;
        self.socket.feed(Message::text("help")).await?;
        self.socket.flush().await
    }

    /// The next event from the socket. Cancel safe.
    async fn read(&mut self) -> Event {
        loop {
            let patience = if self.end.is_some() { CLOSE_TIMEOUT } else { SILENCE_MAX / 2 };
            let frame = match timeout(patience, self.socket.next()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(e))) => return self.ended(&e),
                Ok(None) => return self.ended(&"no closing handshake"),
                Err(_) if self.end.is_some() || self.state == State::Pinged => {
                    return self.ended(&"the server fell silent");
                }
                Err(_) => {
                    self.state = State::Pinged;
                    let _ = self.socket.send(Message::Ping(Bytes::new())).await;
                    continue;
                }
            };
            self.state = State::Live;
            match frame {
                Message::Text(text) => return Event::from_text(&text),
                // Reading on sends the answer and waits for the server to end the connection.
                Message::Close(frame) => self.end = Some(Ending::from_frame(frame.as_ref())),
                // Pongs are queued by the codec and leave with the next read.
                _ => {}
            }
        }
    }

    /// Notes the end, as the server gave it or else broken off for `cause`.
    fn ended(&mut self, cause: &dyn std::fmt::Display) -> Event {
        self.state = State::Ended;
        Event::Closed(self.end.get_or_insert_with(|| Ending::broken(cause)).clone())
    }
}
