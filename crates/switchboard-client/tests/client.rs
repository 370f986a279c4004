//! The client against a scripted server: what each answer, and each end, is taken for.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use switchboard_client::{
    Address, Client, ConnectError, DeviceId, DeviceRef, Ending, Event, Refusal, SendError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

const INFO: &str = "Your ID: 7\nConnected Devices: \n[7, 8]\nChat usage: send,destinationId,msg";

/// One step of a server's script.
enum Step {
    /// Say this.
    Say(&'static str),
    /// Wait for this.
    Hear(&'static str),
    /// Send a ping and wait for its pong.
    Ping,
    /// Close with this code and reason, and wait for the other side to answer.
    Close(u16, &'static str),
    /// End the TCP connection without a word.
    Drop,
}
use Step::{Close, Drop, Hear, Ping, Say};

/// A server that plays `script` to its one connection, then reads until the end.
async fn server(script: Vec<Step>) -> (String, JoinHandle<()>) {
    let (url, listener) = listener().await;
    let playing = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let socket = tokio_tungstenite::accept_async(socket).await.unwrap();
        play(socket, script).await;
    });
    (url, playing)
}

async fn listener() -> (String, TcpListener) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    (format!("ws://{}", listener.local_addr().unwrap()), listener)
}

async fn play(mut socket: WebSocketStream<TcpStream>, script: Vec<Step>) {
    for step in script {
        match step {
            Say(text) => socket.send(Message::text(text)).await.unwrap(),
            Hear(text) => {
                assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
            }
            Ping => {
                socket.send(Message::Ping("p".into())).await.unwrap();
                assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("p".into()));
            }
            Close(code, reason) => {
                let frame = CloseFrame { code: code.into(), reason: reason.into() };
                socket.close(Some(frame)).await.unwrap();
            }
            Drop => return,
        }
    }
    while let Some(Ok(_)) = socket.next().await {}
}

fn id(number: u64) -> DeviceId {
    DeviceId::new(number)
}

fn message(from: u64, text: &str) -> Option<Event> {
    Some(Event::Message { from: Address::Number(id(from)), text: text.to_owned() })
}

fn ending(code: u16, reason: &str) -> Ending {
    Ending { code, reason: reason.to_owned() }
}

/// What `send` says of "hello" to 8 where the server answers with `answers`.
async fn verdict(answers: Vec<Step>) -> (Client, Result<(), SendError>) {
    let mut script = vec![Say(INFO), Hear("send,8,hello"), Hear("help")];
    script.extend(answers);
    let (url, _playing) = server(script).await;
    let mut client = Client::connect(&url).await.unwrap();
    let sent = client.send(id(8), "hello").await;
    (client, sent)
}

#[tokio::test]
async fn the_welcome_tells_the_id_and_who_is_connected() {
    let (url, playing) = server(vec![Say(INFO)]).await;
    let client = Client::connect(&url).await.unwrap();
    assert_eq!(client.id(), id(7));
    assert_eq!(client.welcome().listed, [7, 8].map(|number| Address::Number(id(number))));
    client.close().await;
    playing.await.unwrap();
}

#[tokio::test]
async fn silence_before_the_info_text_means_delivered() {
    assert_eq!(verdict(vec![Say(INFO)]).await.1, Ok(()));
}

#[tokio::test]
async fn an_error_before_the_info_text_is_the_verdict() {
    for (answer, refusal) in [
        ("Duplicate message", Refusal::Duplicate),
        ("Invalid destinationId", Refusal::NoSuchDevice),
        ("Mailbox full", Refusal::MailboxFull),
        ("Invalid Command", Refusal::UnknownCommand),
        ("Error reading the command", Refusal::Unreadable),
    ] {
        let (_, sent) = verdict(vec![Say(answer), Say(INFO)]).await;
        assert_eq!(sent, Err(SendError::Refused(refusal)), "{answer}");
    }
}

#[tokio::test]
async fn a_name_that_nobody_has_is_no_such_device() {
    let script = vec![
        Say(INFO),
        Hear("send,alice,hello"),
        Hear("help"),
        Say("Error reading the command"),
        Say(INFO),
    ];
    let (url, _playing) = server(script).await;
    let mut client = Client::connect(&url).await.unwrap();
    let sent = client.send(DeviceRef::Name("alice"), "hello").await;
    assert_eq!(sent, Err(SendError::Refused(Refusal::NoSuchDevice)));
}

#[tokio::test]
async fn messages_between_send_and_answer_are_no_verdict_and_are_kept() {
    let (mut client, sent) = verdict(vec![
        Say("8:Duplicate message"),
        Say("9:Your ID: 7\nConnected Devices: \n[7]\nChat usage: send,destinationId,msg"),
        Say(INFO),
        Say("8:after"),
    ])
    .await;
    assert_eq!(sent, Ok(()));
    assert_eq!(client.next().await, message(8, "Duplicate message"));
    assert_eq!(
        client.next().await,
        message(9, "Your ID: 7\nConnected Devices: \n[7]\nChat usage: send,destinationId,msg")
    );
    assert_eq!(client.next().await, message(8, "after"));
}

#[tokio::test]
async fn a_close_before_the_answer_leaves_the_outcome_open() {
    let (mut client, sent) = verdict(vec![Say("8:last"), Close(1001, "restart")]).await;
    assert_eq!(sent, Err(SendError::Closed(ending(1001, "restart"))));
    assert_eq!(client.next().await, message(8, "last"));
    assert_eq!(client.next().await, Some(Event::Closed(ending(1001, "restart"))));
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn a_refusal_before_a_close_is_still_the_verdict() {
    let (_, sent) = verdict(vec![Say("Duplicate message"), Close(1001, "")]).await;
    assert_eq!(sent, Err(SendError::Refused(Refusal::Duplicate)));
}

#[tokio::test]
async fn a_connection_that_breaks_off_ends_with_1006() {
    let (mut client, sent) = verdict(vec![Drop]).await;
    let Err(SendError::Closed(end)) = sent else { panic!("{sent:?}") };
    assert_eq!(end.code, 1006);
    assert_eq!(client.next().await, Some(Event::Closed(end)));
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn sending_after_the_end_fails_at_once() {
    let (mut client, _) = verdict(vec![Close(1001, "")]).await;
    assert_eq!(client.send(id(8), "more").await, Err(SendError::Closed(ending(1001, ""))));
    assert_eq!(client.next().await, Some(Event::Closed(ending(1001, ""))));
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn pings_are_answered_while_events_are_awaited() {
    let (url, _playing) = server(vec![Say(INFO), Ping, Say("8:after the pong")]).await;
    let mut client = Client::connect(&url).await.unwrap();
    assert_eq!(client.next().await, message(8, "after the pong"));
}

#[tokio::test]
async fn texts_that_nobody_knows_are_passed_on() {
    let (url, _playing) = server(vec![Say(INFO), Say("What?")]).await;
    let mut client = Client::connect(&url).await.unwrap();
    assert_eq!(client.next().await, Some(Event::Unknown("What?".to_owned())));
}

#[tokio::test]
async fn too_many_waiting_events_stop_sends_not_events() {
    let mut script = vec![Say(INFO), Hear("send,8,hello"), Hear("help")];
    script.extend((0..switchboard_client::WAITING_EVENTS_MAX).map(|_| Say("8:more")));
    script.push(Say(INFO));
    let (url, _playing) = server(script).await;
    let mut client = Client::connect(&url).await.unwrap();
    assert_eq!(client.send(id(8), "hello").await, Ok(()));
    assert_eq!(client.send(id(8), "again").await, Err(SendError::EventsWaiting));
    for _ in 0..switchboard_client::WAITING_EVENTS_MAX {
        assert_eq!(client.next().await, message(8, "more"));
    }
}

#[tokio::test]
async fn another_websocket_server_is_recognised() {
    let (url, _playing) = server(vec![Say("welcome to the chat")]).await;
    let error = Client::connect(&url).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoWelcome), "{error}");
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
    let error = Client::connect(&url).await.unwrap_err();
    assert_eq!(error.to_string(), "the server answered 503: full");
}

#[tokio::test]
async fn an_address_that_is_none_is_told() {
    for url in ["127.0.0.1:8080", "http://127.0.0.1", "", "ws://"] {
        let error = Client::connect(url).await.unwrap_err();
        assert!(matches!(error, ConnectError::Address { .. }), "{url:?}: {error}");
    }
}

#[tokio::test]
async fn nobody_listening_is_told() {
    let (url, listener) = listener().await;
    drop(listener);
    let error = Client::connect(&url).await.unwrap_err();
    assert!(matches!(error, ConnectError::Transport(_)), "{error}");
}

#[tokio::test]
async fn trusted_authorities_that_cannot_be_read_are_told() {
    let options = switchboard_client::Options { ca: Some("/nonexistent.pem".into()) };
    let error = Client::connect_with("wss://127.0.0.1:1", &options).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent.pem"), "{error}");
}
