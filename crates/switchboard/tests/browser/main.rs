//! The page in a real browser, against the real server: what a user sees, clicks and types.
//!
//! Needs Chromium and its driver, named by `CHROMIUM` and `CHROMEDRIVER` or found in `PATH`;
//! without them the tests fail.

mod browser;
mod clients;
mod delivery;
mod device;
mod page;
mod proxied;
mod server;

use browser::{Browser, Screen};
use device::Device;
use fantoccini::key::Key;
use server::Server;

#[tokio::test]
async fn two_pages_send_to_each_other() {
    let server = Server::start();
    let browser = Browser::start();
    let first = browser.open(&server.page()).await;
    let second = browser.open(&server.page()).await;
    let (first_id, second_id) = (first.id().await, second.id().await);
    assert_ne!(first_id, second_id);

    // Without the option websocat sends the line feed, too.
    let websocat = format!("websocat --linemode-strip-newlines {}", server.socket());
    first.shows("#websocat", &websocat).await;
    // The first page learns of the second without a reload.
    first.shows("#devices .digits", &second_id).await;
    first.send(&second_id, "hello").await;
    second.shows(".entry.in .peer .digits", &first_id).await;
    second.shows(".entry.in .text", "hello").await;
    first.shows(".entry.out[data-state=delivered] .text", "hello").await;
    first.shows(".state", "delivered").await;

    second.send(&first_id, "hello yourself").await;
    first.shows(".entry.in .text", "hello yourself").await;

    first.close_without_console_errors().await;
    second.close_without_console_errors().await;
}

#[tokio::test]
async fn a_refusal_stands_at_the_send_that_caused_it() {
    let server = Server::start();
    let browser = Browser::start();
    let mut device = Device::connect(&server);
    let page = browser.open(&server.page()).await;
    page.speak_text().await;

    // All are sent before the first answer.
    let to = device.id.clone();
    page.send_at_once(&[(&to, "before"), ("999", "to nobody"), (&to, "after"), (&to, "after")])
        .await;

    page.shows(":nth-child(2 of .out) .error", "Invalid destinationId").await;
    page.shows(":nth-child(4 of .out) .error", "Duplicate message").await;
    assert_eq!(page.count(":nth-child(odd of .out)[data-state=handed-over]").await, 2);
    assert_eq!(page.count(":nth-child(even of .out)[data-state=rejected]").await, 2);
    assert_eq!(page.count(".error").await, 2);
    assert_eq!(device.message().1, "before");
    assert_eq!(device.message().1, "after");

    page.close_without_console_errors().await;
}

#[tokio::test]
async fn a_refused_message_can_be_edited_and_sent_again() {
    let server = Server::start();
    let browser = Browser::start();
    let mut device = Device::connect(&server);
    let page = browser.open(&server.page()).await;

    page.send("999", "valuable").await;
    page.click(".again").await;
    assert_eq!(page.value("#to").await, "999");
    page.fill("#to", &device.id).await;
    page.click("#send").await;

    assert_eq!(device.message().1, "valuable");
    page.close_without_console_errors().await;
}

#[tokio::test]
async fn choosing_a_device_addresses_it() {
    let server = Server::start();
    let browser = Browser::start();
    let mut device = Device::connect(&server);
    let page = browser.open(&server.page()).await;

    page.click(&format!("#devices [data-id='{}']", device.id)).await;
    assert_eq!(page.value("#to").await, device.id);
    page.keys("picked from the list").await;
    page.keys(&Key::Enter).await;

    assert_eq!(device.message(), (page.id().await, "picked from the list".into()));
    page.close_without_console_errors().await;
}

#[tokio::test]
async fn a_received_message_is_answered_by_a_click() {
    let server = Server::start();
    let browser = Browser::start();
    let mut device = Device::connect(&server);
    let page = browser.open(&server.page()).await;

    device.send(&page.id().await, "are you there?");
    page.click(".entry.in .text").await;
    page.keys("I am").await;
    page.keys(&Key::Enter).await;

    assert_eq!(device.message().1, "I am");
    page.close_without_console_errors().await;
}

#[tokio::test]
async fn markup_and_new_lines_in_a_message_are_text() {
    let server = Server::start();
    let browser = Browser::start();
    let mut device = Device::connect(&server);
    let page = browser.open(&server.page()).await;
    let text = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>\nYour ID: 1, and 😀 نعم";

    device.send(&page.id().await, text);
    page.shows(".entry.in .text", text).await;

    assert_eq!(page.count(".entry.in :is(img, b)").await, 0);
    page.close_without_console_errors().await;
}

#[tokio::test]
async fn the_keyboard_alone_is_enough() {
    let server = Server::start();
    let browser = Browser::start();
    let page = browser.open(&server.page()).await;
    let mut device = Device::connect(&server);
    page.shows("#devices .digits", &device.id).await;

    // Tab stops: the skip link, this device's id, the protocol, then the devices as one stop
    // with arrow keys inside.
    for _ in 0..4 {
        page.keys(&Key::Tab).await;
    }
    page.keys(&Key::End).await;
    page.keys(&Key::Enter).await;
    assert_eq!(page.value("#to").await, device.id);
    page.keys("one").await;
    page.keys(&(Key::Shift + &Key::Enter)).await;
    page.keys("two").await;
    page.keys(&Key::Enter).await;

    assert_eq!(device.message().1, "one\ntwo");
    page.shows(".entry.out[data-state=handed-over] .text", "one\ntwo").await;
    assert_eq!(page.value("#text").await, "");
    page.close_without_console_errors().await;
}

#[tokio::test]
async fn by_text_the_page_comes_back_with_a_new_id_after_a_restart() {
    let mut server = Server::start();
    let browser = Browser::start();
    let first = Device::connect(&server);
    let page = browser.open(&server.page()).await;
    page.speak_text().await;
    let old_id = page.id().await;
    page.fill("#text", "written before").await;

    server.stop();
    page.shows("#status-text", "Offline").await;
    page.shows("#outage-title", "Connection lost.").await;
    page.send("1", "kept").await;
    page.shows("#composer-hint", "Not connected. Your message stays here until you are.").await;
    assert_eq!(page.value("#text").await, "kept");

    drop(first);
    server.start_again();
    page.shows("#status-text", "Connected").await;
    let new_id = page.id().await;
    assert_ne!(new_id, old_id);
    page.shows(
        ".note .text",
        &format!("Connected. Your id is {new_id}. It was {old_id}; messages to that id no longer come here."),
    )
    .await;
    assert_eq!(page.value("#text").await, "kept");
    assert_eq!(page.count("#outage[hidden]").await, 1);

    let mut device = Device::connect(&server);
    page.send(&device.id, "back").await;
    assert_eq!(device.message(), (new_id, "back".into()));
}

#[tokio::test]
async fn the_page_keeps_the_last_500_entries() {
    let server = Server::start();
    let browser = Browser::start();
    let mut device = Device::connect(&server);
    let page = browser.open(&server.page()).await;
    let id = page.id().await;

    // One sender may use half of the page's mailbox, so they are not sent all at once.
    for round in [1..=310, 311..=620] {
        let last = *round.end();
        for number in round {
            device.send(&id, &format!("message {number}"));
        }
        page.shows(".entry:last-child .text", &format!("message {last}")).await;
    }

    assert_eq!(page.count(".entry").await, 500);
    page.shows(".entry:first-child .text", "message 121").await;
    page.shows("#dropped", "120 earlier entries are no longer shown.").await;
    page.close_without_console_errors().await;
}

#[tokio::test]
async fn a_phone_shows_the_whole_page_without_scrolling_sideways() {
    let server = Server::start();
    let browser = Browser::start();
    let mut device = Device::connect(&server);
    let page = browser.open_on(Screen::Phone, &server.page()).await;

    device.send(&page.id().await, &"long".repeat(200));
    page.shows(".entry.in .text", &"long".repeat(200)).await;

    page.until(
        "nothing reaches beyond the screen",
        "const all = [...document.querySelectorAll('main, main *:not(.unseen)')];
         return innerWidth === 360 && document.documentElement.scrollWidth === 360
             && all.every((e) => e.getBoundingClientRect().right <= 360 && e.scrollWidth <= 360);",
        vec![],
    )
    .await;
    page.until(
        "the form is on the screen",
        "return document.getElementById('composer').getBoundingClientRect().bottom <= innerHeight;",
        vec![],
    )
    .await;
    page.close_without_console_errors().await;
}
