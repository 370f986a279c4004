//! A client that expects to be rejected or closed at any time.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use switchboard_proto::v1::SUBPROTOCOL;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::{Error, Message, WebSocket};

use crate::server::Server;

/// A connection from an address of its own.
pub(crate) struct Client(WebSocket<TcpStream>);

/// The end of a connection, or the reason why there is none: an HTTP status, a close code, or
/// "reset".
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct End(pub(crate) String);

impl From<Error> for End {
    fn from(error: Error) -> End {
        End(match error {
            Error::Http(answer) => answer.status().as_u16().to_string(),
            Error::Io(error) if is_timeout(&error) => "timeout".to_owned(),
            _ => "reset".to_owned(),
        })
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Opens a TCP connection from `from`, an address of this machine, with a timeout.
pub(crate) fn socket(server: &Server, from: IpAddr) -> Result<TcpStream, End> {
    let reset = |_| End("reset".to_owned());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(reset)?;
    socket.bind(&SocketAddr::new(from, 0).into()).map_err(reset)?;
    socket.connect(&server.address.into()).map_err(reset)?;
    let socket = TcpStream::from(socket);
    let patience = Some(Duration::from_secs(3));
    socket.set_read_timeout(patience).map_err(reset)?;
    socket.set_write_timeout(patience).map_err(reset)?;
    socket.set_nodelay(true).map_err(reset)?;
    Ok(socket)
}

impl Client {
    /// Connects by the text protocol and reads the welcome.
    pub(crate) fn text(server: &Server, from: IpAddr) -> Result<(Client, u64), End> {
        let mut client = Client::shake_hands(server, from, false)?;
        let welcome = client.hear_text()?;
        let id = welcome
            .strip_prefix("Your ID: ")
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Ok((client, id.expect("an id")))
    }

    /// Connects by v1 and sends nothing.
    pub(crate) fn silent(server: &Server, from: IpAddr) -> Result<Client, End> {
        Client::shake_hands(server, from, true)
    }

    /// Connects by v1; returns the welcome too. `hello` lacks only its type.
    pub(crate) fn v1(
        server: &Server,
        from: IpAddr,
        mut hello: Value,
    ) -> Result<(Client, Value), End> {
        let mut client = Client::silent(server, from)?;
        hello["type"] = json!("hello");
        client.say(&hello)?;
        let welcome = client.hear()?;
        Ok((client, welcome))
    }

    fn shake_hands(server: &Server, from: IpAddr, is_v1: bool) -> Result<Client, End> {
        let mut request = server.url().into_client_request()?;
        if is_v1 {
            let offered = HeaderValue::from_static(SUBPROTOCOL);
            request.headers_mut().insert("Sec-WebSocket-Protocol", offered);
        }
        match tungstenite::client(request, socket(server, from)?) {
            Ok((socket, _)) => Ok(Client(socket)),
            Err(tungstenite::HandshakeError::Failure(error)) => Err(error.into()),
            Err(tungstenite::HandshakeError::Interrupted(_)) => Err(End("timeout".to_owned())),
        }
    }

    pub(crate) fn say(&mut self, frame: &Value) -> Result<(), End> {
        self.say_text(&frame.to_string())
    }

    pub(crate) fn say_text(&mut self, text: &str) -> Result<(), End> {
        self.0.send(Message::text(text)).map_err(|error| self.why(error))
    }

    pub(crate) fn ping(&mut self) -> Result<(), End> {
        self.0.send(Message::Ping(Vec::new().into())).map_err(|error| self.why(error))
    }

    /// Returns the next frame.
    pub(crate) fn hear(&mut self) -> Result<Value, End> {
        Ok(serde_json::from_str(&self.hear_text()?).expect("v1 is JSON"))
    }

    /// Returns the next text.
    pub(crate) fn hear_text(&mut self) -> Result<String, End> {
        loop {
            match self.0.read()? {
                Message::Text(text) => return Ok(text.as_str().to_owned()),
                Message::Close(frame) => {
                    return Err(End(frame.map_or(1005, |frame| frame.code.into()).to_string()));
                }
                _ => {}
            }
        }
    }

    /// Reads until the connection ends, and returns how it ended.
    pub(crate) fn end(&mut self) -> End {
        loop {
            if let Err(end) = self.hear_text() {
                return end;
            }
        }
    }

    /// Returns why writing failed: the close frame that came before tells.
    fn why(&mut self, error: Error) -> End {
        match error {
            Error::Io(ref io) if is_timeout(io) => error.into(),
            _ => self.end(),
        }
    }

    /// Returns the socket, to send raw bytes past the codec.
    pub(crate) fn raw(&mut self) -> &mut TcpStream {
        self.0.get_mut()
    }
}
