//! A plain device beside the page: a blocking WebSocket client for both protocols.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

use crate::server::Server;

const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A connected device.
pub(crate) struct Device {
    /// The id that the server gave it.
    pub(crate) id: String,
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
}

impl Device {
    /// Connects and reads the welcome.
    pub(crate) fn connect(server: &Server) -> Self {
        let (mut socket, _) = tungstenite::connect(server.socket()).expect("a device connects");
        limit(&mut socket);
        let welcome = text_of(&mut socket);
        let id = welcome
            .strip_prefix("Your ID: ")
            .and_then(|rest| rest.lines().next())
            .expect("a welcome starts with the id")
            .to_owned();
        Self { id, socket }
    }

    /// Connects by v1 and reads the welcome.
    pub(crate) fn connect_v1(server: &Server) -> Self {
        let protocol = HeaderValue::from_static("switchboard.v1.json");
        let mut request = server.socket().into_client_request().expect("an address");
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let (mut socket, _) = tungstenite::connect(request).expect("a device connects");
        limit(&mut socket);
        socket.send(Message::text(r#"{"type":"hello"}"#)).expect("the connection holds");
        let welcome: Value = serde_json::from_str(&text_of(&mut socket)).expect("a frame is JSON");
        let id = welcome["device"].as_str().expect("a welcome tells the id").to_owned();
        Self { id, socket }
    }

    /// Sends the JSON text `body` to the device `to`. Needs v1.
    pub(crate) fn send_json(&mut self, to: &str, body: &str) {
        let frame = format!(r#"{{"type":"send","id":"1","to":"{to}","body":{body}}}"#);
        self.socket.send(Message::text(frame)).expect("the connection holds");
    }

    /// Sends `text` to the device `to`.
    pub(crate) fn send(&mut self, to: &str, text: &str) {
        self.socket.send(Message::text(format!("send,{to},{text}"))).expect("the connection holds");
    }

    /// Returns the next message as sender and text.
    pub(crate) fn message(&mut self) -> (String, String) {
        let message = text_of(&mut self.socket);
        let (from, text) = message.split_once(':').expect("a message names its sender first");
        (from.to_owned(), text.to_owned())
    }
}

fn limit(socket: &mut WebSocket<MaybeTlsStream<TcpStream>>) {
    if let MaybeTlsStream::Plain(stream) = socket.get_mut() {
        stream.set_read_timeout(Some(ANSWER_MAX)).expect("a time limit");
    }
}

fn text_of(socket: &mut WebSocket<MaybeTlsStream<TcpStream>>) -> String {
    loop {
        match socket.read().expect("a frame in time") {
            Message::Text(text) => return text.as_str().to_owned(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("expected text, got {other:?}"),
        }
    }
}
