//! A v1 device for tests: another WebSocket implementation (tungstenite), with frames as JSON.

use std::io::ErrorKind;
use std::net::TcpStream;

use serde_json::{Value, json};
use switchboard_proto::v1::{SUBPROTOCOL, parse_server};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::{Error, Message, WebSocket};

use crate::server::Server;
pub(crate) use crate::server::{now_s, token};

/// A connection that speaks v1.
pub(crate) struct V1 {
    /// The server's answer to `hello`; null before.
    pub(crate) welcome: Value,
    /// The device's token.
    token: String,
    socket: WebSocket<TcpStream>,
}

/// A device that is not connected, and its state.
pub(crate) struct Away {
    pub(crate) device: String,
    pub(crate) token: String,
    pub(crate) mailbox: String,
}

impl V1 {
    /// Performs the handshake and sends nothing.
    pub(crate) fn open(server: &Server) -> V1 {
        V1::try_open(server).expect("the handshake succeeds")
    }

    /// Like [`V1::open`], for a server that may be gone.
    pub(crate) fn try_open(server: &Server) -> Result<V1, Error> {
        V1::over(server.socket(), server.url())
    }

    /// Performs the handshake over an existing stream.
    pub(crate) fn over(stream: TcpStream, url: String) -> Result<V1, Error> {
        let mut request = url.into_client_request()?;
        let offered = HeaderValue::from_static(SUBPROTOCOL);
        request.headers_mut().insert("Sec-WebSocket-Protocol", offered);
        let client = tungstenite::client(request, stream);
        let (socket, answer) = client.map_err(|error| match error {
            tungstenite::HandshakeError::Failure(error) => error,
            tungstenite::HandshakeError::Interrupted(_) => Error::Io(ErrorKind::TimedOut.into()),
        })?;
        assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], SUBPROTOCOL);
        Ok(V1 { welcome: Value::Null, token: String::new(), socket })
    }

    /// Opens a session; `hello` lacks only its type.
    pub(crate) fn hello(server: &Server, hello: Value) -> V1 {
        let mut device = V1::open(server);
        device.say_hello(hello);
        device.welcome();
        device
    }

    /// Sends `hello` without waiting for the answer.
    pub(crate) fn say_hello(&mut self, mut hello: Value) {
        self.token = hello["token"].as_str().unwrap_or_default().to_owned();
        hello["type"] = json!("hello");
        self.say(&hello);
    }

    /// Reads the answer to `hello`.
    pub(crate) fn welcome(&mut self) {
        self.welcome = self.expect(json!({"type": "welcome"}));
        if let Some(token) = self.welcome["token"].as_str() {
            token.clone_into(&mut self.token);
        }
    }

    /// Connects a new device without a name.
    pub(crate) fn anonymous(server: &Server) -> V1 {
        V1::hello(server, json!({}))
    }

    /// Connects a device by its name.
    pub(crate) fn named(server: &Server, name: &str) -> V1 {
        V1::hello(server, json!({"token": token(server, name, None)}))
    }

    /// Returns the device's id.
    pub(crate) fn device(&self) -> String {
        self.welcome["device"].as_str().expect("a welcome").to_owned()
    }

    /// Returns the state that it needs to come back.
    pub(crate) fn away(&self) -> Away {
        let mailbox = self.welcome["mailbox"].as_str().expect("a welcome").to_owned();
        Away { device: self.device(), token: self.token.clone(), mailbox }
    }

    /// Closes; when this returns the server knows that the device is away.
    pub(crate) fn leave(mut self) -> Away {
        self.socket.close(None).unwrap();
        while self.read().is_ok() {}
        self.away()
    }

    pub(crate) fn say(&mut self, frame: &Value) {
        self.say_text(&frame.to_string());
    }

    /// Sends a text unchanged.
    pub(crate) fn say_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Sends many frames at once.
    pub(crate) fn say_all(&mut self, frames: impl IntoIterator<Item = Value>) {
        for frame in frames {
            self.socket.write(Message::text(frame.to_string())).unwrap();
        }
        self.socket.flush().unwrap();
    }

    /// Returns the next frame unchanged.
    #[track_caller]
    pub(crate) fn hear_text(&mut self) -> String {
        loop {
            match self.read() {
                Ok(Message::Text(text)) => return text.as_str().to_owned(),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    /// Returns the next frame, which must be valid for a client.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> Value {
        let text = self.hear_text();
        parse_server(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"));
        serde_json::from_str(&text).unwrap()
    }

    /// Returns the next frame, which must have at least these fields.
    #[track_caller]
    pub(crate) fn expect(&mut self, fields: Value) -> Value {
        let frame = self.hear();
        for (name, value) in fields.as_object().expect("fields") {
            assert_eq!(frame.get(name), Some(value), "{name} of {frame}");
        }
        frame
    }

    /// Sends a frame and returns the next one, which must have at least these fields.
    #[track_caller]
    pub(crate) fn ask(&mut self, frame: Value, fields: Value) -> Value {
        self.say(&frame);
        self.expect(fields)
    }

    /// Sends a message, which must be accepted on disk.
    #[track_caller]
    pub(crate) fn send(&mut self, to: &str, id: &str) {
        let fields = json!({"type": "accepted", "id": id, "durability": "disk"});
        let accepted = self.ask(send(to, id), fields);
        assert_eq!(accepted.get("duplicate"), None);
    }

    /// Like [`V1::send`], with a receipt requested and more fields in the frame.
    #[track_caller]
    pub(crate) fn send_with(&mut self, to: &str, id: &str, more: &Value) {
        self.ask(with(send(to, id), more), json!({"type": "accepted", "id": id}));
    }

    /// Reads the message with this id, which must be next; returns its `seq`.
    #[track_caller]
    pub(crate) fn take(&mut self, id: &str) -> u64 {
        self.expect(json!({"type": "message", "id": id}))["seq"].as_u64().unwrap()
    }

    pub(crate) fn ack(&mut self, seq: u64) {
        self.say(&json!({"type": "ack", "seq": seq}));
    }

    /// Checks that everything sent has been handled and nothing else came: answers come in
    /// order.
    #[track_caller]
    pub(crate) fn hears_nothing(&mut self) {
        self.ask(
            json!({"type": "ping", "id": "nothing"}),
            json!({"type": "pong", "id": "nothing"}),
        );
    }

    /// Reads up to the close frame; returns its code and reason.
    #[track_caller]
    pub(crate) fn end(&mut self) -> (u16, String) {
        let mut end = None;
        loop {
            match self.read() {
                Ok(Message::Close(frame)) => end = frame,
                Ok(_) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let frame = end.expect("a close frame");
        (frame.code.into(), frame.reason.as_str().to_owned())
    }

    /// Returns the next WebSocket message. A read with a timeout is interrupted by any signal.
    pub(super) fn read(&mut self) -> Result<Message, Error> {
        loop {
            match self.socket.read() {
                Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Returns the socket, for actions below the level of frames.
    pub(crate) fn socket(&mut self) -> &mut WebSocket<TcpStream> {
        &mut self.socket
    }
}

impl Away {
    /// Connects again, having seen everything up to `last_seq`.
    pub(crate) fn back(&self, server: &Server, last_seq: u64) -> V1 {
        let Away { token, mailbox, .. } = self;
        V1::hello(server, json!({"token": token, "mailbox": mailbox, "last_seq": last_seq}))
    }
}

/// Returns a message with a small body.
pub(crate) fn send(to: &str, id: &str) -> Value {
    json!({"type": "send", "to": to, "id": id, "body": id})
}

/// Returns the frame with more fields.
pub(crate) fn with(mut frame: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().expect("fields") {
        frame[name] = value.clone();
    }
    frame
}
