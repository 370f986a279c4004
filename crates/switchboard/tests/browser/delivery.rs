//! Promises of the page in v1: it stays one device over reloads, restarts and copies, and its
//! ticks are true.

use serde_json::json;

use crate::browser::Browser;
use crate::device::Device;
use crate::server::Server;

#[tokio::test]
async fn a_reload_is_the_same_device_with_the_same_conversation() {
    let server = Server::start();
    let browser = Browser::start();
    let page = browser.open(&server.page()).await;
    let other = browser.open(&server.page()).await;
    let (id, other_id) = (page.id().await, other.id().await);
    page.send(&other_id, "before").await;
    page.shows(".entry.out[data-state=delivered] .text", "before").await;
    other.shows(".entry.in .text", "before").await;

    page.go(&server.page()).await;
    other.go(&server.page()).await;
    assert_eq!((page.id().await, other.id().await), (id.clone(), other_id));
    page.shows(".entry.out[data-state=delivered] .text", "before").await;
    other.send(&id, "after").await;
    page.shows(".entry.in .text", "after").await;
    assert_eq!(page.texts(".entry .text").await, ["before", "after"]);
    assert_eq!(other.texts(".entry .text").await, ["before", "after"]);

    page.close_without_console_errors().await;
    other.close_without_console_errors().await;
}

#[tokio::test]
async fn a_message_to_a_page_that_is_away_waits_for_it() {
    let server = Server::start();
    let browser = Browser::start();
    let sender = browser.open(&server.page()).await;
    let receiver = browser.open(&server.page()).await;
    let id = receiver.id().await;
    let jack = format!("#devices [data-id='{id}']");
    sender.shows_count(&format!("{jack}[data-away=false]"), 1).await;

    receiver.leave().await;
    sender.shows_count(&format!("{jack}[data-away=true]"), 1).await;
    sender.click(&jack).await;
    sender
        .until(
            "the form says that it waits",
            "return /is away since .+: your message waits for it/
                 .test(document.getElementById('composer-hint').textContent);",
            vec![],
        )
        .await;
    sender.send(&id, "for later").await;
    sender.shows(".entry.out[data-state=accepted] .state", "stored, on disk").await;
    let mut device = Device::connect(&server);
    device.send(&id, "by text, for later");

    receiver.go(&server.page()).await;
    receiver.shows(".entry.in .text", "by text, for later").await;
    assert_eq!(receiver.texts(".entry.in .text").await, ["for later", "by text, for later"]);
    sender.shows(".entry.out[data-state=delivered] .text", "for later").await;
    sender.shows_count(&format!("{jack}[data-away=false]"), 1).await;

    sender.close_without_console_errors().await;
    receiver.close_without_console_errors().await;
}

#[tokio::test]
async fn a_copied_tab_takes_over_and_the_first_can_take_back() {
    let server = Server::start();
    let browser = Browser::start();
    let page = browser.open(&server.page()).await;
    let mut device = Device::connect(&server);
    let id = page.id().await;

    let first = page.duplicate().await;
    assert_eq!(page.id().await, id);
    let second = page.tab().await;
    page.turn_to(&first).await;
    page.shows("#notice-title", "This device is in use elsewhere.").await;
    page.shows("#status-text", "Taken over").await;

    page.click("#take-back").await;
    page.shows("#status-text", "Connected").await;
    page.shows_count("#notice[hidden]", 1).await;
    device.send(&id, "to the first");
    page.shows(".entry.in .text", "to the first").await;

    page.turn_to(&second).await;
    page.shows("#status-text", "Taken over").await;
    page.click("#be-new").await;
    let new_id = page.connected_as_other_than(&id).await;
    device.send(&new_id, "to the second");
    page.shows(".entry.in .text", "to the second").await;
    page.turn_to(&first).await;
    page.shows("#status-text", "Connected").await;

    page.close_without_console_errors().await;
}

#[tokio::test]
async fn the_text_protocol_is_one_click_away_and_back() {
    let server = Server::start();
    let browser = Browser::start();
    let page = browser.open(&server.page()).await;
    let other = browser.open(&server.page()).await;
    let (id, other_id) = (page.id().await, other.id().await);

    page.speak_text().await;
    let text_id = page.id().await;
    page.send(&other_id, "by text").await;
    other.shows(".entry.in .text", "by text").await;
    page.shows(".entry.out[data-state=handed-over] .text", "by text").await;
    // The first of these learns that a text device gives no receipts; the second must not
    // overtake it.
    other.send_at_once(&[(&text_id, "one"), (&text_id, "two"), (&text_id, "three")]).await;
    page.shows(".entry.in .text", "three").await;
    assert_eq!(page.texts(".entry.in .text").await, ["one", "two", "three"]);
    other.shows_count(".entry.out[data-state=handed-over]", 3).await;

    // The tab remembers the choice, and the device that it was before.
    page.go(&server.page()).await;
    page.shows_count("#protocol [value=text]:checked", 1).await;
    let before = page.id().await;
    page.choose("v1").await;
    assert_eq!(page.connected_as_other_than(&before).await, id);

    page.close_without_console_errors().await;
    other.close_without_console_errors().await;
}

#[tokio::test]
async fn a_killed_server_loses_nothing_and_doubles_nothing() {
    const EACH: usize = 40;

    let mut server = Server::start();
    let browser = Browser::start();
    let sender = browser.open(&server.page()).await;
    let receiver = browser.open(&server.page()).await;
    let (from, to) = (sender.id().await, receiver.id().await);
    let texts: Vec<String> = (0..3 * EACH).map(|number| format!("message {number}")).collect();

    for (round, texts) in texts.chunks(EACH).enumerate() {
        let messages: Vec<_> = texts.iter().map(|text| (to.as_str(), text.as_str())).collect();
        sender.send_at_once(&messages).await;
        server.stop();
        sender.shows("#status-text", "Offline").await;
        server.start_again();
        sender.shows("#status-text", "Connected").await;
        sender.shows_count(".entry.out[data-state=delivered]", (round + 1) * EACH).await;
    }

    assert_eq!(receiver.texts(".entry.in .text").await, texts);
    assert_eq!((sender.id().await, receiver.id().await), (from, to));
}

#[tokio::test]
async fn a_rejection_says_why_in_words() {
    let server = Server::start();
    let browser = Browser::start();
    let page = browser.open(&server.page()).await;

    page.send("999", "to nobody").await;
    page.shows(".entry.out[data-state=rejected] .error", "No such device").await;
    page.shows(".says", "No such device: nobody has this id, or its time is over.").await;

    page.close_without_console_errors().await;
}

#[tokio::test]
async fn a_body_that_is_no_string_shows_as_compact_json() {
    let server = Server::start();
    let browser = Browser::start();
    let page = browser.open(&server.page()).await;
    let mut device = Device::connect_v1(&server);

    device.send_json(
        &page.id().await,
        "{ \"on\": true, \"levels\": [ 12345678901234567890, null ] }",
    );
    page.shows(".entry.in .text", "{\"on\":true,\"levels\":[12345678901234567890,null]}").await;

    page.close_without_console_errors().await;
}

#[tokio::test]
async fn a_refused_token_is_told_and_a_new_device_is_one_click_away() {
    let server = Server::start();
    let browser = Browser::start();
    let page = browser.open(&server.page()).await;
    let id = page.id().await;
    page.send("999", "shown before").await;
    page.shows(".error", "No such device").await;

    page.store("device", json!({ "device": id, "token": "forged", "mailbox": "0" })).await;
    page.reload().await;
    page.shows("#status-text", "Refused").await;
    page.shows("#notice-title", "The server refused this device:").await;
    page.click("#be-new").await;
    page.connected_as_other_than(&id).await;
    page.shows_count("#notice[hidden]", 1).await;
    page.shows(".entry.out .text", "shown before").await;

    page.close_without_console_errors().await;
}
