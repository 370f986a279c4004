//! A device for tests: another WebSocket implementation (tungstenite), the text protocol by
//! hand.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message, WebSocket};

use crate::server::Server;

/// A connected device, over TCP unless another stream is given.
pub(crate) struct Device<S = TcpStream> {
    /// The id that the server gave it.
    pub(crate) id: u64,
    /// The welcome, whole.
    pub(crate) welcome: String,
    pub(crate) socket: WebSocket<S>,
}

impl Device {
    /// Connects and reads the welcome.
    pub(crate) fn connect(server: &Server) -> Device {
        Device::try_connect(server, server.url()).expect("the handshake succeeds")
    }

    /// Connects with a given request.
    pub(crate) fn try_connect(
        server: &Server,
        request: impl IntoClientRequest,
    ) -> Result<Device, Error> {
        Device::over(server.socket(), request)
    }
}

impl<S: Read + Write> Device<S> {
    /// Connects over an existing stream.
    pub(crate) fn over(stream: S, request: impl IntoClientRequest) -> Result<Device<S>, Error> {
        let client = tungstenite::client(request, stream);
        let (mut socket, _) = client.map_err(|error| match error {
            tungstenite::HandshakeError::Failure(error) => error,
            tungstenite::HandshakeError::Interrupted(_) => Error::Io(ErrorKind::TimedOut.into()),
        })?;
        let welcome = read_text(&mut socket);
        let id = welcome
            .strip_prefix("Your ID: ")
            .and_then(|rest| rest.lines().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no id in {welcome:?}"));
        Ok(Device { id, welcome, socket })
    }

    /// Sends a text unchanged.
    pub(crate) fn say(&mut self, message: &str) {
        self.socket.send(Message::text(message)).unwrap();
    }

    /// Sends `send,<to>,<text>`.
    pub(crate) fn send(&mut self, to: u64, text: &str) {
        self.say(&format!("send,{to},{text}"));
    }

    /// Returns the next text.
    pub(crate) fn hear(&mut self) -> String {
        read_text(&mut self.socket)
    }

    /// Sends a text and returns the next one received.
    pub(crate) fn ask(&mut self, message: &str) -> String {
        self.say(message);
        self.hear()
    }

    /// Checks that everything sent so far has been handled and nothing else came of it: the
    /// server answers one connection's commands in order, so the answer to `help` proves it.
    pub(crate) fn hears_nothing(&mut self) {
        let answer = self.ask("help");
        assert!(answer.starts_with("Your ID: "), "{answer:?}");
    }

    /// Reads to the end of the connection; returns the close frame, if there was one.
    pub(crate) fn close_frame(&mut self) -> Option<CloseFrame> {
        let mut frame = None;
        loop {
            match self.socket.read() {
                Ok(Message::Close(close)) => frame = close,
                Ok(_) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return frame,
                Err(Error::Protocol(_)) if frame.is_none() => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Returns the code of [`Device::close_frame`].
    pub(crate) fn close_code(&mut self) -> u16 {
        self.close_frame().expect("a close frame").code.into()
    }

    /// Closes properly, and waits for the end.
    pub(crate) fn close(mut self) {
        self.socket.close(None).unwrap();
        self.close_frame();
    }
}

fn read_text<S: Read + Write>(socket: &mut WebSocket<S>) -> String {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => return text.as_str().to_owned(),
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            other => panic!("expected text, got {other:?}"),
        }
    }
}
