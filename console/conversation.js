// The conversation: what was sent, what came, what became of it, and when; bounded, so that it can run for days.

import { cordOf } from "./devices.js";
import { recall, remember } from "./tab.js";

/** Older entries leave the page. */
const ENTRIES_MAX = 500;
/** Characters kept in all entries together; the newest entry always stays. */
const CHARS_MAX = 4_000_000;
/** What survives a reload: entries, and characters in all of them together. */
const KEPT_MAX = 200;
const KEPT_CHARS_MAX = 500_000;
/** Characters shown of one message before it must be asked for whole. */
const PREVIEW_CHARS = 4_000;
/** Closer to the end than this, the reader follows the newest entry. */
const FOLLOW_PX = 48;

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DATE_AND_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const DATE_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const NUMBER = new Intl.NumberFormat();

/** How the progress of a send is shown: in the words of `switchboard send`, where it has one. */
const STATES = {
  sending: "sending",
  sent: "sent",
  held: "waits to be sent again",
  accepted: "stored",
  delivered: "delivered",
  "handed-over": "accepted",
  rejected: "rejected",
  returned: "not delivered",
  unknown: "unknown",
};
/** Nothing that comes later changes these. */
const FINAL = new Set(["delivered", "handed-over", "rejected", "returned"]);
const FAILED = new Set(["rejected", "returned", "unknown"]);
/** What has been done for a message that was accepted. */
const DURABILITIES = { memory: "in memory", disk: "on disk", replicated: "on several servers" };

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
  /** Messages of ours by their id, as long as they are shown. */
  #sent = new Map();
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
  received({ from, text, sentAtMs }) {
    this.#showReceived({ kind: "in", peer: from, text, at: sentAtMs });
  }

  /** A message of ours on its way; `id` is for its progress. */
  sent({ id, to, text }) {
    this.#following = true;
    this.#showSent({ kind: "out", id, peer: to, text, at: Date.now(), progress: { name: "sending" } });
  }

  /** Something that happened to the connection. */
  note(text) {
    this.#showNote({ kind: "note", text, at: Date.now() });
  }

  /**
   * What has become of the message `id`: a name of `STATES`, with `durability` where it is
   * accepted, and with `what` and `why` where it failed. Gives who it was for, if that is news.
   */
  progress(id, progress) {
    const entry = this.#sent.get(id);
    if (!entry || FINAL.has(entry.data.progress.name)) return null;
    entry.data.progress = progress;
    this.#showProgress(entry);
    return entry.data.peer;
  }

  /** Keeps the newest entries for this tab. */
  keep() {
    const all = [...this.#shown, ...this.#waiting].map(({ data }) => data);
    let from = Math.max(0, all.length - KEPT_MAX);
    let chars = all.slice(from).reduce((sum, { text }) => sum + text.length, 0);
    while (chars > KEPT_CHARS_MAX) chars -= all[from++].text.length;
    remember("entries", all.slice(from));
  }

  /** Shows what the tab has kept; of the messages without an answer, only `unanswered` are sent again. */
  restore(unanswered) {
    const show = {
      in: (data) => this.#showReceived(data),
      out: (data) => this.#showSent({ ...data, progress: restored(data, unanswered) }),
      note: (data) => this.#showNote(data),
    };
    for (const data of recall("entries", [])) show[data.kind](data);
  }

  #showReceived(data) {
    const { item, head } = entry("in", data.peer);
    head.append(peerButton("From", data.peer, "Reply"), time(data.at));
    item.append(...body(data.text));
    item.addEventListener("click", (event) => {
      const chose = event.target.closest(".peer");
      const reads = event.target.closest("button, a") || !getSelection().isCollapsed;
      if (chose || !reads) this.onaddress(data.peer);
    });
    this.#add({ item, data });
  }

  #showSent(data) {
    const { item, head } = entry("out", data.peer);
    // Every tick read aloud would drown the messages; the page announces what matters.
    const state = Object.assign(element("span", "state"), { ariaLive: "off" });
    const peer = peerButton("To", data.peer, "Write again");
    peer.addEventListener("click", () => this.onaddress(data.peer));
    head.append(peer, time(data.at), state);
    item.append(...body(data.text));
    const shown = { item, data, state, failure: null };
    this.#sent.set(data.id, shown);
    this.#showProgress(shown);
    this.#add(shown);
  }

  #showNote(data) {
    const item = element("li", "entry note");
    item.append(element("p", "text", data.text), time(data.at));
    this.#add({ item, data });
  }

  #showProgress(entry) {
    const { name, durability } = entry.data.progress;
    const words = durability ? `${STATES[name]}, ${DURABILITIES[durability] ?? durability}` : STATES[name];
    entry.item.dataset.state = name;
    entry.state.textContent = words;
    entry.failure?.remove();
    entry.failure = FAILED.has(name) ? this.#failure(entry.data) : null;
    if (!entry.failure) return;
    entry.item.append(entry.failure);
    if (this.#following) this.#follow();
  }

  #failure({ peer, text, progress: { what = "Connection lost", why = "it may or may not have arrived." } }) {
    const failure = element("div", "failure");
    const says = element("p", "says");
    says.append(element("strong", "error", what), why && `: ${why}`);
    const again = element("button", "again", "Edit and send again");
    again.type = "button";
    again.addEventListener("click", () => this.onagain(peer, text));
    failure.append(says, again);
    return failure;
  }

  #add(entry) {
    this.#waiting.push(entry);
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
    if (batch.some(({ data }) => data.kind !== "note")) this.#welcome.hidden = true;
    this.#list.append(...batch.map(({ item }) => item));
    this.#shown.push(...batch);
    for (const { data } of batch) this.#chars += data.text.length;
    this.#trim();
    if (document.hidden) return;
    if (this.#following) this.#follow();
    else this.#newest.hidden = false;
  }

  #trim() {
    while (this.#shown.length > ENTRIES_MAX || (this.#chars > CHARS_MAX && this.#shown.length > 1)) {
      const { item, data } = this.#shown.shift();
      item.remove();
      this.#sent.delete(data.id);
      this.#chars -= data.text.length;
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

/** How a message of ours stands after a reload. */
function restored({ id, progress }, unanswered) {
  if (unanswered.includes(id)) return { name: "held" };
  return FINAL.has(progress.name) || progress.name === "accepted" ? progress : { name: "unknown" };
}

function time(atMs) {
  const date = new Date(atMs);
  const isToday = date.toDateString() === new Date().toDateString();
  const shown = element("time", "", isToday ? TIME.format(date) : DATE_AND_TIME.format(date));
  shown.dateTime = date.toISOString();
  shown.title = DATE_TIME.format(date);
  return shown;
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
