// The conversation: what was sent, what came, what went wrong, and when; bounded, so that it can run for days.

import { cordOf } from "./devices.js";

/** Older entries leave the page. */
const ENTRIES_MAX = 500;
/** Characters kept in all entries together; the newest entry always stays. */
const CHARS_MAX = 4_000_000;
/** Characters shown of one message before it must be asked for whole. */
const PREVIEW_CHARS = 4_000;
/** Closer to the end than this, the reader follows the newest entry. */
const FOLLOW_PX = 48;

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DATE_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const NUMBER = new Intl.NumberFormat();

/** How each outcome of a send is shown. */
const STATES = {
  "handed-over": "handed over",
  refused: "not sent",
  unknown: "not confirmed",
};

/** Shows entries in the order they happen and calls `onaddress(id)` when one is answered. */
export class Conversation {
  onaddress = () => {};
  onagain = () => {};

  #log = document.getElementById("log");
  #list = document.getElementById("entries");
  #welcome = document.getElementById("welcome");
  #dropped = document.getElementById("dropped");
  #newest = document.getElementById("newest");
  /** Entries waiting for the next frame, so that a flood costs one layout a frame. */
  #waiting = [];
  #scheduled = false;
  #shown = [];
  #chars = 0;
  #droppedCount = 0;
  #following = true;
  #lastTop = 0;

  constructor() {
    this.#log.addEventListener("scroll", () => this.#readerMoved(), { passive: true });
    this.#newest.addEventListener("click", () => this.#follow());
    document.addEventListener("visibilitychange", () => this.#following && this.#follow());
    new ResizeObserver(() => this.#following && this.#follow()).observe(this.#log);
  }

  /** A message from the device `from`. */
  received(from, text) {
    const { item, head } = entry("in", from);
    head.append(peerButton("From", from, "Reply"), now());
    item.append(...body(text));
    item.addEventListener("click", (event) => {
      const chose = event.target.closest(".peer");
      const reads = event.target.closest("button, a") || !getSelection().isCollapsed;
      if (chose || !reads) this.onaddress(from);
    });
    this.#add(item, text.length, true);
  }

  /** A message of ours on its way; the function returned settles it with a send's outcome. */
  sent(to, text, meaningOf) {
    const { item, head } = entry("out", to);
    const state = element("span", "state", "sending");
    const peer = peerButton("To", to, "Write again");
    peer.addEventListener("click", () => this.onaddress(to));
    head.append(peer, now(), state);
    item.append(...body(text));
    item.dataset.state = "sending";
    this.#following = true;
    this.#add(item, text.length, true);
    return (outcome) => {
      item.dataset.state = outcome.kind;
      state.textContent = STATES[outcome.kind];
      if (outcome.kind === "handed-over") return;
      item.append(this.#failure(outcome, to, text, meaningOf));
      if (this.#following) this.#follow();
    };
  }

  /** Something that happened to the connection. */
  note(text) {
    const item = element("li", "entry note");
    item.append(element("p", "text", text), now());
    this.#add(item, text.length, false);
  }

  #failure(outcome, to, text, meaningOf) {
    const failure = element("div", "failure");
    const says = element("p", "says");
    const refused = outcome.kind === "refused";
    const meaning = refused ? meaningOf(outcome.answer) : "it may or may not have arrived.";
    says.append(element("strong", "error", refused ? outcome.answer : "Connection lost"), meaning && `: ${meaning}`);
    const again = element("button", "again", "Edit and send again");
    again.type = "button";
    again.addEventListener("click", () => this.onagain(to, text));
    failure.append(says, again);
    return failure;
  }

  #add(item, chars, endsWelcome) {
    this.#waiting.push({ item, chars, endsWelcome });
    // A hidden page gets no animation frames, and costs no layout.
    if (document.hidden) this.#flush();
    else if (!this.#scheduled) {
      this.#scheduled = true;
      requestAnimationFrame(() => this.#flush());
    }
  }

  #flush() {
    this.#scheduled = false;
    const batch = this.#waiting.splice(0);
    if (batch.some(({ endsWelcome }) => endsWelcome)) this.#welcome.hidden = true;
    this.#list.append(...batch.map(({ item }) => item));
    this.#shown.push(...batch);
    for (const { chars } of batch) this.#chars += chars;
    this.#trim();
    if (document.hidden) return;
    if (this.#following) this.#follow();
    else this.#newest.hidden = false;
  }

  #trim() {
    while (this.#shown.length > ENTRIES_MAX || (this.#chars > CHARS_MAX && this.#shown.length > 1)) {
      const { item, chars } = this.#shown.shift();
      item.remove();
      this.#chars -= chars;
      this.#droppedCount += 1;
    }
    this.#dropped.hidden = this.#droppedCount === 0;
    this.#dropped.textContent = `${NUMBER.format(this.#droppedCount)} earlier entries are no longer shown.`;
  }

  #readerMoved() {
    const top = this.#log.scrollTop;
    const below = this.#log.scrollHeight - top - this.#log.clientHeight;
    // Only moving up ends it: text that wraps anew makes the end move away without the reader.
    this.#following = below < FOLLOW_PX || (this.#following && top >= this.#lastTop);
    this.#lastTop = top;
    if (this.#following) this.#newest.hidden = true;
  }

  #follow() {
    this.#following = true;
    this.#newest.hidden = true;
    this.#log.scrollTop = this.#list.childElementCount > 0 ? this.#log.scrollHeight : 0;
  }
}

function entry(direction, peer) {
  const item = element("li", `entry ${direction}`);
  item.dataset.cord = cordOf(peer);
  const head = element("div", "head");
  item.append(head);
  return { item, head };
}

function peerButton(word, id, action) {
  const button = element("button", "peer");
  button.type = "button";
  button.title = `${action} to ${id}`;
  button.append(element("span", "word", `${word} `), element("span", "digits", id));
  button.append(element("span", "unseen", `, ${action}`));
  return button;
}

/** The text of a message: all of it, or its beginning and a button for the rest. */
function body(text) {
  const shown = element("p", "text", text.slice(0, PREVIEW_CHARS));
  shown.dir = "auto";
  if (text === "") shown.append(element("em", "empty", "(an empty message)"));
  if (text.length <= PREVIEW_CHARS) return [shown];
  const all = element("button", "all", `Show all ${NUMBER.format(text.length)} characters`);
  all.type = "button";
  all.addEventListener("click", () => {
    shown.textContent = text;
    all.remove();
  });
  return [shown, all];
}

function now() {
  const date = new Date();
  const time = element("time", "", TIME.format(date));
  time.dateTime = date.toISOString();
  time.title = DATE_TIME.format(date);
  return time;
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
