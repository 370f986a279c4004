//! The reasons why a connection failed are distinguished.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::net::SocketAddr;
use std::time::Duration;

use switchboard_client::v1::{OpenError, Session, SessionOptions, State};
use switchboard_client::{ConnectError, ConnectOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn listener() -> (String, TcpListener) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    (format!("ws://{}", listener.local_addr().unwrap()), listener)
}

async fn error(url: &str, connect: ConnectOptions) -> ConnectError {
    let options = SessionOptions { connect, ..SessionOptions::default() };
    match Session::open(url, options, State::default()).await {
        Err(OpenError::Connect(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_http_error_is_told_with_its_words() {
    let (url, listener) = listener().await;
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _ = socket.read(&mut request).await.unwrap();
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nfull\n";
        socket.write_all(answer).await.unwrap();
    });
    let error = error(&url, ConnectOptions::default()).await;
    assert_eq!(error.to_string(), "the server answered 503: full");
}

#[tokio::test]
async fn an_address_that_is_none_is_told() {
    for url in ["127.0.0.1:8080", "http://127.0.0.1", "", "ws://"] {
        let error = error(url, ConnectOptions::default()).await;
        assert!(matches!(error, ConnectError::Address { .. }), "{url:?}: {error}");
    }
}

#[tokio::test]
async fn nobody_listening_is_told() {
    let (url, listener) = listener().await;
    drop(listener);
    let error = error(&url, ConnectOptions::default()).await;
    assert!(matches!(error, ConnectError::Refused), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let (url, _listener) = listener().await;
    let timeout = Duration::from_millis(20);
    let error = error(&url, ConnectOptions { timeout, ..ConnectOptions::default() }).await;
    assert_eq!(error.to_string(), "no answer within 20ms");
}

/// It must not be taken for a TLS server.
#[tokio::test]
async fn a_server_of_something_else_is_told() {
    let (url, listener) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"220 mail.example.org ESMTP\r\n").await.unwrap();
        }
    });
    let error = error(&url, ConnectOptions::default()).await;
    assert!(matches!(error, ConnectError::Transport(_)), "{error}");
}

#[tokio::test]
async fn trusted_authorities_that_cannot_be_read_are_told() {
    let ca = Some("/nonexistent.pem".into());
    let error =
        error("wss://127.0.0.1:1", ConnectOptions { ca, ..ConnectOptions::default() }).await;
    assert!(error.to_string().contains("/nonexistent.pem"), "{error}");
}
