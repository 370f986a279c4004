//! A session against a scripted server: the frames and events of each connection.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use switchboard_client::v1::{
    Ack, AskError, CancelError, Durability, Event, OpenError, Outgoing, SendError, Session,
    SessionOptions, State, TakenOver, Word,
};
use switchboard_client::{ConnectError, Ending};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// One step of a connection's script.
enum Step {
    /// Expect this frame.
    Hear(&'static str),
    /// Send this frame.
    Say(&'static str),
    /// Close with this code and reason, and wait for the other side to answer.
    Close(u16, &'static str),
    /// End the TCP connection without a closing handshake.
    Drop,
}
use Step::{Close, Drop, Hear, Say};

const HELLO: &str = r#"{"type":"hello"}"#;
const WELCOME: &str = r#"{"type":"welcome","device":"7","token":"t","mailbox":"a","resumed":false,"pending":0,"last_seq":0,"ping_every_ms":25000,"max_message_bytes":4096,"durability":"disk","server":"test"}"#;
/// The hello that follows [`WELCOME`] if nothing was acked.
const AGAIN: &str = r#"{"type":"hello","token":"t","mailbox":"a","last_seq":0}"#;
const SEND: &str = r#"{"type":"send","id":"m","to":"8","body":"x"}"#;

type Socket = WebSocketStream<TcpStream>;

/// Starts a server that plays one script per connection, one after the other.
async fn server(scripts: Vec<Vec<Step>>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let playing = tokio::spawn(async move {
        for script in scripts {
            let (socket, _) = listener.accept().await.unwrap();
            play(accept(socket).await, script).await;
        }
    });
    (url, playing)
}

async fn accept(socket: TcpStream) -> Socket {
    #[expect(clippy::result_large_err, reason = "the library's type")]
    let speak_v1 = |request: &Request, mut response: Response| {
        let offered = request.headers()[SEC_WEBSOCKET_PROTOCOL].clone();
        assert_eq!(offered, "switchboard.v1.json");
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, offered);
        Ok(response)
    };
    tokio_tungstenite::accept_hdr_async(socket, speak_v1).await.unwrap()
}

async fn play(mut socket: Socket, script: Vec<Step>) {
    for step in script {
        match step {
            Say(text) => socket.send(Message::text(text)).await.unwrap(),
            Hear(text) => assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text)),
            Close(code, reason) => {
                let frame = CloseFrame { code: code.into(), reason: reason.into() };
                socket.close(Some(frame)).await.unwrap();
            }
            Drop => return,
        }
    }
    while let Some(Ok(_)) = socket.next().await {}
}

/// Returns the default options with negligible delays.
fn quick() -> SessionOptions {
    let pause = Duration::from_millis(1);
    SessionOptions { pause_min: pause, pause_max: pause, ..SessionOptions::default() }
}

async fn open(scripts: Vec<Vec<Step>>, options: SessionOptions) -> (Session, JoinHandle<()>) {
    let (url, playing) = server(scripts).await;
    (Session::open(&url, options, State::default()).await.unwrap(), playing)
}

fn outgoing() -> Outgoing {
    Outgoing { id: "m".to_owned(), ..Outgoing::text("8", "x") }
}

/// Returns the next event that is not about the connection.
async fn next(session: &mut Session) -> Event {
    loop {
        match session.next().await.unwrap() {
            Event::Online(_) | Event::Offline { .. } => {}
            event => return event,
        }
    }
}

/// Returns the body of the next message.
async fn body(session: &mut Session) -> String {
    match next(session).await {
        Event::Message(message) => message.body,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_welcome_tells_who_the_device_is_and_what_to_keep() {
    let (session, playing) = open(vec![vec![Hear(HELLO), Say(WELCOME)]], quick()).await;
    assert_eq!(session.id(), "7");
    let state = session.close().await;
    let token = Some("t".to_owned());
    assert_eq!(state, State { token, mailbox: Some("a".to_owned()), last_seq: 0 });
    playing.await.unwrap();
}

#[tokio::test]
async fn an_ephemeral_device_says_so_in_each_hello() {
    let scripts = vec![
        vec![Hear(r#"{"type":"hello","ephemeral":true}"#), Say(WELCOME), Drop],
        vec![
            Hear(r#"{"type":"hello","token":"t","mailbox":"a","last_seq":0,"ephemeral":true}"#),
            Say(WELCOME),
            Hear(SEND),
            Say(r#"{"type":"accepted","id":"m","durability":"disk"}"#),
        ],
    ];
    let (session, playing) = open(scripts, SessionOptions { ephemeral: true, ..quick() }).await;
    session.device().send(outgoing()).await.unwrap();
    session.close().await;
    playing.await.unwrap();
}

#[tokio::test]
async fn a_session_that_does_not_reconnect_ends_with_its_connection() {
    let script = vec![Hear(HELLO), Say(WELCOME), Hear(SEND), Drop];
    let (session, playing) =
        open(vec![script], SessionOptions { reconnect: false, ..quick() }).await;
    let Err(SendError::Ended(ending)) = session.device().send(outgoing()).await else {
        panic!("it was answered")
    };
    assert_eq!(ending.code, 1006);
    playing.await.unwrap();
}

#[tokio::test]
async fn a_send_without_answer_is_sent_again_under_its_id() {
    let (session, playing) = open(
        vec![
            vec![Hear(HELLO), Say(WELCOME), Hear(SEND), Drop],
            vec![Hear(AGAIN), Close(1013, "busy")],
            vec![
                Hear(AGAIN),
                Say(WELCOME),
                Hear(SEND),
                Say(r#"{"type":"rejected","id":"m","code":"store_unavailable","message":"","retry_after_ms":1}"#),
                Hear(SEND),
                Say(r#"{"type":"accepted","id":"m","durability":"disk","duplicate":true}"#),
            ],
        ],
        quick(),
    )
    .await;
    let accepted = session.device().send(outgoing()).await.unwrap();
    assert!(accepted.duplicate);
    assert_eq!(accepted.durability, Word::Known(Durability::Disk));
    session.close().await;
    playing.await.unwrap();
}

const ONE: &str = r#"{"type":"message","seq":1,"from":"8","id":"i","body":1,"sent_at_ms":1}"#;
const TWO: &str = r#"{"type":"message","seq":2,"from":"8","id":"j","body":2,"sent_at_ms":1}"#;
const THREE: &str = r#"{"type":"message","seq":3,"from":"8","id":"k","body":3,"sent_at_ms":1}"#;
const ACK_ONE: &str = r#"{"type":"ack","seq":1}"#;
const ACKED_ONE: &str = r#"{"type":"hello","token":"t","mailbox":"a","last_seq":1}"#;

#[tokio::test]
async fn what_was_seen_is_left_out_and_only_what_was_taken_is_acked() {
    let (mut session, playing) = open(
        vec![
            vec![Hear(HELLO), Say(WELCOME), Say(ONE), Say(TWO), Hear(ACK_ONE), Drop],
            vec![
                Hear(ACKED_ONE),
                Say(WELCOME),
                Hear(ACK_ONE),
                Say(TWO),
                Say(THREE),
                Hear(r#"{"type":"ack","seq":3}"#),
            ],
        ],
        SessionOptions { ack: Ack::ByHand, ..quick() },
    )
    .await;
    let one = next(&mut session).await;
    session.device().ack(one.cursor().unwrap());
    assert_eq!(body(&mut session).await, "2");
    let three = next(&mut session).await;
    session.device().ack(three.cursor().unwrap());
    assert_eq!(session.close().await.last_seq, 3);
    playing.await.unwrap();
}

#[tokio::test]
async fn asking_for_the_next_event_acks_the_one_before() {
    let script = vec![Hear(HELLO), Say(WELCOME), Say(ONE), Hear(ACK_ONE), Say(TWO)];
    let (mut session, playing) = open(vec![script], quick()).await;
    assert_eq!(body(&mut session).await, "1");
    assert_eq!(session.state().last_seq, 0);
    assert_eq!(body(&mut session).await, "2");
    assert_eq!(session.state().last_seq, 1);
    assert_eq!(session.close().await.last_seq, 2);
    playing.await.unwrap();
}

#[tokio::test]
async fn some_ends_are_for_good_and_tell_those_who_wait() {
    for (code, reason) in [(4401, "expired"), (4409, "taken over"), (4400, "bad")] {
        let script = vec![Hear(HELLO), Say(WELCOME), Hear(SEND), Close(code, reason)];
        let (mut session, _playing) = open(vec![script], quick()).await;
        let ending = Ending { code, reason: reason.to_owned() };
        let sent = session.device().send(outgoing()).await;
        assert_eq!(sent, Err(SendError::Ended(ending.clone())));
        assert_eq!(next(&mut session).await, Event::Closed(ending.clone()));
        assert_eq!(session.next().await, None);
        let sent = session.device().send(outgoing()).await;
        assert_eq!(sent, Err(SendError::Ended(ending)));
    }
}

#[tokio::test]
async fn a_device_that_was_taken_over_is_taken_back_where_that_is_asked() {
    let (mut session, _playing) = open(
        vec![
            vec![Hear(HELLO), Say(WELCOME), Close(4409, "")],
            vec![Hear(AGAIN), Say(WELCOME), Say(ONE)],
        ],
        SessionOptions { taken_over: TakenOver::TakeBack, ..quick() },
    )
    .await;
    assert_eq!(body(&mut session).await, "1");
}

#[tokio::test]
async fn a_server_that_goes_says_when_to_come_back() {
    let bye = r#"{"type":"bye","reconnect_in_ms":20,"reason":"restart"}"#;
    let (mut session, _playing) =
        open(vec![vec![Hear(HELLO), Say(WELCOME), Say(bye), Close(1001, "")]], quick()).await;
    assert!(matches!(session.next().await, Some(Event::Online(_))));
    let Some(Event::Offline { retry_in, .. }) = session.next().await else { panic!() };
    assert!(retry_in >= Duration::from_millis(20), "{retry_in:?}");
}

/// A server that shuts down waits for its clients to close. It once waited for the whole of
/// their delay.
#[tokio::test]
async fn the_old_connection_is_closed_before_the_pause() {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let going = tokio::spawn(async move {
        let mut socket = accept(listener.accept().await.unwrap().0).await;
        socket.next().await.unwrap().unwrap();
        socket.send(Message::text(WELCOME)).await.unwrap();
        let frame = CloseFrame { code: 1001.into(), reason: "restart".into() };
        socket.close(Some(frame)).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
        socket.get_mut().read(&mut [0]).await
    });
    let pause = Duration::from_secs(3600);
    let options =
        SessionOptions { pause_min: pause, pause_max: pause, ..SessionOptions::default() };
    let session = Session::open(&url, options, State::default()).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(10), going).await;
    assert_eq!(read.expect("it is closed").unwrap().unwrap(), 0);
    session.close().await;
}

#[tokio::test]
async fn a_token_that_is_not_accepted_opens_nothing() {
    let (url, _playing) = server(vec![vec![Close(4401, "it has expired")]]).await;
    let error = Session::open(&url, quick(), State::default()).await.unwrap_err();
    let OpenError::Closed(ending) = &error else { panic!("{error}") };
    assert_eq!(ending.code, 4401);
    assert!(error.to_string().contains("it has expired"), "{error}");
}

#[tokio::test]
async fn a_server_of_the_text_protocol_is_recognised() {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        tokio_tungstenite::accept_async(socket).await.unwrap();
    });
    let error = Session::open(&url, quick(), State::default()).await.unwrap_err();
    assert!(matches!(error, OpenError::Connect(ConnectError::NoV1)), "{error}");
}

#[tokio::test]
async fn rejections_are_told_with_their_code() {
    let no =
        r#"{"type":"rejected","id":"m","code":"mailbox_full","message":"full","retry_after_ms":9}"#;
    let bad = r#"{"type":"error","code":"bad_frame","message":"no","id":"m"}"#;
    let script = vec![Hear(HELLO), Say(WELCOME), Hear(SEND), Say(no), Hear(SEND), Say(bad)];
    let (session, _playing) = open(vec![script], quick()).await;
    let Err(SendError::Rejected(rejection)) = session.device().send(outgoing()).await else {
        panic!()
    };
    assert_eq!(rejection.to_string(), "mailbox_full: full");
    assert_eq!(rejection.retry_after, Some(Duration::from_millis(9)));
    let sent = session.device().send(outgoing()).await;
    assert_eq!(sent, Err(SendError::Invalid("no".to_owned())));
}

#[tokio::test]
async fn what_the_server_would_not_read_is_not_sent() {
    let (session, _playing) = open(vec![vec![Hear(HELLO), Say(WELCOME)]], quick()).await;
    let device = session.device();
    let large = device.send(Outgoing::text("8", &"x".repeat(5_000))).await.unwrap_err();
    assert!(matches!(large, SendError::TooLarge { max: 4096, .. }), "{large}");
    let no_json = device.send(Outgoing::json("8", "{")).await.unwrap_err();
    assert!(matches!(no_json, SendError::Invalid(_)), "{no_json}");
}

#[tokio::test]
async fn a_rejected_cancellation_is_told_with_its_code() {
    let cancel = r#"{"type":"cancel","id":"m","to":"a b"}"#;
    let no = r#"{"type":"rejected","id":"m","to":"a b","code":"too_late","message":"pushed"}"#;
    let script = vec![Hear(HELLO), Say(WELCOME), Hear(cancel), Say(no)];
    let (session, _playing) = open(vec![script], quick()).await;
    let rejected = session.device().cancel("a b", "m").await.unwrap_err();
    assert_eq!(rejected.to_string(), "too_late: pushed");
}

#[tokio::test]
async fn a_cancellation_whose_answer_is_lost_is_not_repeated() {
    let cancel = r#"{"type":"cancel","id":"m","to":"8"}"#;
    let yes = r#"{"type":"cancelled","id":"m","to":"8"}"#;
    let (session, _playing) = open(
        vec![
            vec![Hear(HELLO), Say(WELCOME), Hear(cancel), Say(yes), Hear(cancel), Drop],
            vec![Hear(AGAIN), Say(WELCOME)],
        ],
        quick(),
    )
    .await;
    assert_eq!(session.device().cancel("8", "m").await, Ok(()));
    assert_eq!(session.device().cancel("8", "m").await, Err(CancelError::Interrupted));
}

#[tokio::test]
async fn a_refusal_is_said_before_the_acks_behind_it() {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let playing = tokio::spawn(async move {
        let mut socket = accept(listener.accept().await.unwrap().0).await;
        let hear = async |socket: &mut Socket| {
            socket.next().await.unwrap().unwrap().into_text().unwrap().as_str().to_owned()
        };
        assert_eq!(hear(&mut socket).await, HELLO);
        for text in [WELCOME, ONE, TWO] {
            socket.send(Message::text(text)).await.unwrap();
        }
        assert_eq!(hear(&mut socket).await, r#"{"type":"refuse","seq":1,"reason":"no"}"#);
        // The connection ends before the refusal is confirmed, so it must be sent again.
        drop(socket);
        let mut socket = accept(listener.accept().await.unwrap().0).await;
        assert_eq!(hear(&mut socket).await, AGAIN);
        socket.send(Message::text(WELCOME)).await.unwrap();
        assert_eq!(hear(&mut socket).await, r#"{"type":"refuse","seq":1,"reason":"no"}"#);
        let ping = hear(&mut socket).await;
        socket.send(Message::text(ping.replace("ping", "pong"))).await.unwrap();
        assert_eq!(hear(&mut socket).await, r#"{"type":"ack","seq":2}"#);
    });
    let options = SessionOptions { ack: Ack::ByHand, ..quick() };
    let mut session = Session::open(&url, options, State::default()).await.unwrap();
    let (one, two) = (next(&mut session).await, next(&mut session).await);
    session.device().refuse(one.cursor().unwrap(), Some("no")).await.unwrap();
    session.device().ack(two.cursor().unwrap());
    playing.await.unwrap();
}

#[tokio::test]
async fn an_id_is_of_one_message_at_a_time() {
    let yes = r#"{"type":"accepted","id":"m","durability":"disk"}"#;
    let (session, _playing) =
        open(vec![vec![Hear(HELLO), Say(WELCOME), Hear(SEND), Say(yes)]], quick()).await;
    let device = session.device();
    let (first, second) = tokio::join!(device.send(outgoing()), device.send(outgoing()));
    assert!(first.is_ok());
    assert_eq!(second, Err(SendError::InFlight));
}

#[tokio::test]
async fn asking_after_the_end_fails() {
    let (mut session, _playing) =
        open(vec![vec![Hear(HELLO), Say(WELCOME), Close(4401, "")]], quick()).await;
    next(&mut session).await;
    let ending = Ending { code: 4401, reason: String::new() };
    let device = session.device();
    assert_eq!(device.devices(None, None).await, Err(AskError::Ended(ending.clone())));
    assert_eq!(device.watch(&["8"]).await, Err(AskError::Ended(ending)));
}
