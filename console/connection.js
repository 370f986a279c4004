// One device's connection to the server: opens it, keeps it, and pairs each send with its outcome.

import { HELP, readFrame, sendCommand } from "./protocol.js";

const TICK_MS = 3_000;
/** Ticks without any frame, while an answer is due, after which the connection counts as dead: 15 s. */
const SILENT_TICKS_MAX = 5;
/** How long a connection may take to open. */
const OPEN_MS_MAX = 10_000;
/** The first wait before trying again; it doubles up to the longest. */
const BACK_OFF_MS = 500;
const BACK_OFF_MS_MAX = 30_000;
/** A connection that held this long was a good one: the next wait is short again. */
const STABLE_MS = 5_000;

/** Close codes that say more than "the connection broke". */
const CLOSE_REASONS = new Map([
  [1001, "The server is shutting down or restarting."],
  [1008, "The server does not allow this connection."],
  [1009, "A message was larger than the server accepts."],
  [1011, "The server failed."],
  [1012, "The server is restarting."],
  [1013, "The server is too busy, or this page read too slowly."],
  [4508, "This page read too slowly."],
]);

/**
 * A connection that comes back by itself. It calls, for the page to override:
 *
 * - `onstate(state)`: `{name: "connecting"}`, `{name: "open", id}` or
 *   `{name: "waiting", reason, retryAt}`, where `retryAt` is in `performance.now()` milliseconds;
 * - `oninfo({id, devices, more})`: on opening and then every few seconds while the page is seen;
 * - `onmessage({from, text})`: a message from a device;
 * - `onstray(text)`: an answer that no command of ours asked for.
 *
 * The server answers a connection's commands in order and a successful send not at all, so each
 * send is followed by `help`: the info text that comes back proves that the send was handed over.
 */
export class Connection {
  onstate = () => {};
  oninfo = () => {};
  onmessage = () => {};
  onstray = () => {};

  #url;
  #socket = null;
  #retry = null;
  #openTimer = null;
  #attempts = 0;
  #openedAt = null;
  /** Commands without their answer yet, oldest first: a function that settles a send, or null for `help`. */
  #due = [];
  #silentTicks = 0;
  #bufferedAtTick = 0;

  /** `url` is the server's WebSocket address; nothing happens before `connect`. */
  constructor(url) {
    this.#url = url;
    setInterval(() => this.#tick(), TICK_MS);
  }

  get isOpen() {
    return this.#openedAt !== null;
  }

  /** Connects now, unless a connection is open or being opened. */
  connect() {
    if (this.#socket) return;
    clearTimeout(this.#retry);
    this.onstate({ name: "connecting" });
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#due = [null];
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#lost(CLOSE_REASONS.get(event.code) ?? "");
    this.#openTimer = setTimeout(() => this.#abandon(), OPEN_MS_MAX);
  }

  /**
   * Sends `text` to the device `to`. Resolves to `{kind: "handed-over"}`, `{kind: "refused", answer}`,
   * or `{kind: "unknown"}` when the connection broke before the server answered. Needs `isOpen`.
   */
  send(to, text) {
    return new Promise((settle) => {
      this.#command(sendCommand(to, text), settle);
      this.#command(HELP, null);
    });
  }

  /** Asks for the info text, unless an answer is due anyway. */
  refresh() {
    if (this.isOpen && this.#due.length === 0) this.#command(HELP, null);
  }

  /** The page is seen again, or the network is back: make sure that the connection lives. */
  wake() {
    if (this.#socket) this.refresh();
    else this.connect();
  }

  #command(text, settle) {
    this.#due.push(settle);
    this.#socket.send(text);
  }

  #receive(data) {
    this.#silentTicks = 0;
    const frame = readFrame(data);
    if (frame.kind === "message") this.onmessage(frame);
    else if (frame.kind === "info") this.#informed(frame);
    else this.#refused(frame.text);
  }

  #informed(info) {
    while (this.#due.length > 0) {
      const settle = this.#due.shift();
      if (!settle) break;
      settle({ kind: "handed-over" });
    }
    if (!this.isOpen) this.#opened(info.id);
    this.oninfo(info);
  }

  #refused(answer) {
    const settle = this.#due[0];
    if (!settle) {
      this.onstray(answer);
      return;
    }
    this.#due.shift();
    settle({ kind: "refused", answer });
  }

  #opened(id) {
    clearTimeout(this.#openTimer);
    this.#openedAt = performance.now();
    this.#silentTicks = 0;
    this.onstate({ name: "open", id });
  }

  /** Counts ticks rather than time, so that a laptop's sleep is not taken for a silent server. */
  #tick() {
    if (!this.isOpen) return;
    const buffered = this.#socket.bufferedAmount;
    const progress = buffered < this.#bufferedAtTick;
    this.#bufferedAtTick = buffered;
    this.#silentTicks = this.#due.length > 0 && !progress ? this.#silentTicks + 1 : 0;
    if (this.#silentTicks >= SILENT_TICKS_MAX) this.#abandon();
    else if (!document.hidden) this.refresh();
  }

  /** Gives the socket up without waiting for a peer that no longer answers. */
  #abandon() {
    const socket = this.#socket;
    socket.onmessage = null;
    socket.onclose = null;
    socket.close();
    this.#lost("The server does not answer.");
  }

  #lost(reason) {
    clearTimeout(this.#openTimer);
    const stable = this.isOpen && performance.now() - this.#openedAt >= STABLE_MS;
    this.#attempts = stable ? 0 : this.#attempts + 1;
    this.#socket = null;
    this.#openedAt = null;
    for (const settle of this.#due.splice(0)) settle?.({ kind: "unknown" });
    const waitMs = backOffMs(this.#attempts);
    this.#retry = setTimeout(() => this.connect(), waitMs);
    this.onstate({ name: "waiting", reason, retryAt: performance.now() + waitMs });
  }
}

/** Between half of the wait and all of it, at random, so that pages do not return in step. */
function backOffMs(attempts) {
  const longest = Math.min(BACK_OFF_MS_MAX, BACK_OFF_MS * 2 ** attempts);
  return longest * (0.5 + Math.random() / 2);
}
