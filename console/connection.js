// A connection that opens, stays open and comes back by itself; what is said on it is its protocol's.

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
  [1008, "This connection went over a limit of the server."],
  [1009, "A message was larger than the server accepts."],
  [1011, "The server failed."],
  [1012, "The server is restarting."],
  [1013, "The server is too busy, or this page read too slowly."],
  [4400, "The server did not understand this page: reload it."],
  [4408, "The connection was too slow to begin."],
  [4508, "This page read too slowly."],
]);

/** Whether `id` can be a device's: decimal digits, or a name. */
export function isDeviceId(id) {
  return /^(\d+|[A-Za-z][A-Za-z0-9._:@-]{0,127})$/.test(id);
}

/**
 * One device's connection to the server. It calls, for the page to set:
 *
 * - `onstate(state)`: `{name: "connecting"}`, `{name: "open", id}`, `{name: "waiting", reason, retryAt}`
 *   where `retryAt` is in `performance.now()` milliseconds, or, where only a person can go on,
 *   `{name: "taken-over"}` and `{name: "refused", reason}`;
 * - `ondevices({id, devices: [{id, online, sinceMs}], more})`: who is there, as often as it may have
 *   changed; `sinceMs` is null where the protocol does not tell; `devices` is null where the server does not;
 * - `onmessage({from, text, sentAtMs})`: a message from a device;
 * - `onprogress(id, progress)`: what became of the message sent as `id`; see `Conversation.progress`;
 * - `onnote(text)`: something that a person should know.
 *
 * A protocol extends it by `greet`, `receive`, `refresh`, `isAnswerDue`, `dropped` and, where some
 * close codes end it for good, `verdict`.
 */
export class Connection {
  onstate = () => {};
  ondevices = () => {};
  onmessage = () => {};
  onprogress = () => {};
  onnote = () => {};

  #url;
  #subprotocols;
  #socket = null;
  #retry = null;
  #ticks = null;
  #openTimer = null;
  #attempts = 0;
  #openedAt = null;
  #isHalted = false;
  #comeBackMs = null;
  #silentTicks = 0;
  #bufferedAtTick = 0;

  /** `url` is the server's WebSocket address; nothing happens before `connect`. */
  constructor(url, subprotocols = []) {
    this.#url = url;
    this.#subprotocols = subprotocols;
  }

  get isOpen() {
    return this.#openedAt !== null;
  }

  /** Connects now, unless a connection is open or being opened. */
  connect() {
    if (this.#socket) return;
    clearTimeout(this.#retry);
    this.#ticks ??= setInterval(() => this.#tick(), TICK_MS);
    this.#isHalted = false;
    this.onstate({ name: "connecting" });
    const socket = new WebSocket(this.#url, this.#subprotocols);
    this.#socket = socket;
    socket.onopen = () => this.greet();
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#closed(event);
    this.#openTimer = setTimeout(() => this.#abandon(), OPEN_MS_MAX);
  }

  /** Closes for good; a connection that was ended says nothing more. */
  end() {
    clearTimeout(this.#retry);
    clearInterval(this.#ticks);
    this.onstate = () => {};
    this.#detach();
    this.#release();
  }

  /** The page is seen again, or the network is back: make sure that the connection lives. */
  wake() {
    if (this.#socket) this.refresh();
    else if (!this.#isHalted) this.connect();
  }

  /** Keeps for this tab what a reload must not lose. */
  keep() {}

  // ---- for the protocol ---------------------------------------------------------------------

  /** Sends one frame. Needs an open socket. */
  transmit(text) {
    this.#socket.send(text);
  }

  /** The server has said who this device is. */
  opened(id) {
    clearTimeout(this.#openTimer);
    this.#openedAt = performance.now();
    this.#silentTicks = 0;
    this.onstate({ name: "open", id });
  }

  /** The server is about to close and asks to come back in this time. */
  comeBackIn(waitMs) {
    this.#comeBackMs = waitMs;
  }

  /** The socket is open. */
  greet() {}

  /** A state to stay in after a close with this code and reason, or null to come back. */
  verdict() {
    return null;
  }

  // ---- the socket's life --------------------------------------------------------------------

  #receive(data) {
    this.#silentTicks = 0;
    this.receive(data);
  }

  /** Counts ticks rather than time, so that a laptop's sleep is not taken for a silent server. */
  #tick() {
    if (!this.isOpen) return;
    const buffered = this.#socket.bufferedAmount;
    const progress = buffered < this.#bufferedAtTick;
    this.#bufferedAtTick = buffered;
    this.#silentTicks = this.isAnswerDue && !progress ? this.#silentTicks + 1 : 0;
    if (this.#silentTicks >= SILENT_TICKS_MAX) this.#abandon();
    else if (!document.hidden) this.refresh();
  }

  /** Gives the socket up without waiting for a peer that no longer answers. */
  #abandon() {
    this.#detach();
    this.#lost("The server does not answer.");
  }

  #detach() {
    const socket = this.#socket;
    if (!socket) return;
    socket.onopen = null;
    socket.onmessage = null;
    socket.onclose = null;
    socket.close();
  }

  #closed({ code, reason }) {
    const end = this.verdict(code, reason);
    if (!end) {
      this.#lost(CLOSE_REASONS.get(code) ?? "");
      return;
    }
    this.#isHalted = true;
    this.#release();
    this.onstate(end);
  }

  #lost(reason) {
    const stable = this.isOpen && performance.now() - this.#openedAt >= STABLE_MS;
    this.#attempts = stable ? 0 : this.#attempts + 1;
    const waitMs = this.#comeBackMs === null ? backOffMs(this.#attempts) : spreadMs(this.#comeBackMs);
    this.#release();
    this.#retry = setTimeout(() => this.connect(), waitMs);
    this.onstate({ name: "waiting", reason, retryAt: performance.now() + waitMs });
  }

  #release() {
    clearTimeout(this.#openTimer);
    this.#socket = null;
    this.#openedAt = null;
    this.#comeBackMs = null;
    this.dropped();
  }
}

/** Between half of the wait and all of it, at random, so that pages do not return in step. */
function backOffMs(attempts) {
  const longest = Math.min(BACK_OFF_MS_MAX, BACK_OFF_MS * 2 ** attempts);
  return longest * (0.5 + Math.random() / 2);
}

/** The wait that the server asked for, and up to half of it more. */
function spreadMs(waitMs) {
  return waitMs * (1 + Math.random() / 2);
}
