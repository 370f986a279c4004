// A complete client of switchboard.v1.json, to copy: for browsers, and for Node 22 or later (20 with
// --experimental-websocket). It needs nothing else. See cli.mjs for a program with it; in a page:
//
//     const state = JSON.parse(localStorage.getItem("device")) ?? undefined;
//     const save = (state) => localStorage.setItem("device", JSON.stringify(state));
//     const device = new Device("ws://127.0.0.1:8080/", { state, save, heard: console.log });
//     device.send("100000000", "hello", { receipt: true });

const FINAL = new Set([1007, 1009, 4400, 4401, 4409]); // coming back would change nothing
const PAUSE_MIN_MS = 500;
const PAUSE_MAX_MS = 30_000;
const USEFUL_AFTER_MS = 10_000;
const GRACE_MS = 5_000; // for the way, beside the time in which the server would have pinged

/**
 * One device. `heard` is called with each frame that tells the program something: the welcome,
 * messages, what became of its own, errors, and `closed` when it will not come back.
 *
 * With `state` and `save` the device is the same in every run: token, mailbox, what was seen and what
 * is not answered are in there. A program that dies within `heard` hears the same message again. A
 * `token` takes the place of one that was kept.
 */
export class Device {
  #url; #heard; #save; #ephemeral; #state;
  #socket; #isWelcome = false; #welcomeAt = Infinity; #silence; #pingEveryMs = 25_000;
  #failures = 0; #comeBackInMs = 0; #retry;

  constructor(url, { heard, state, save = () => {}, token, ephemeral = false }) {
    [this.#url, this.#heard, this.#save, this.#ephemeral] = [url, heard, save, ephemeral];
    this.#state = state ?? { mailbox: null, last_seq: 0, outbox: {} };
    this.#state.token = token ?? this.#state.token;
    this.#connect();
  }

  /** How many messages are neither accepted nor rejected yet. */
  get unanswered() {
    return Object.keys(this.#state.outbox).length;
  }

  /** Sends, now or when there is a connection, until it is answered; gives the id. */
  send(to, body, more = {}) {
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    this.#state.outbox[id] = { type: "send", id, to, body, ...more };
    this.#save(this.#state);
    if (this.#isWelcome) this.#say(this.#state.outbox[id]);
    return id;
  }

  /** Ends, and does not come back. */
  close() {
    clearTimeout(this.#retry);
    this.#forget();
    this.#socket.close(1000);
  }

  #connect() {
    const socket = new WebSocket(this.#url, "switchboard.v1.json");
    const { token, mailbox, last_seq } = this.#state;
    this.#socket = socket;
    this.#welcomeAt = Infinity;
    this.#await(false);
    const hello = { type: "hello", token, mailbox, last_seq, ephemeral: this.#ephemeral };
    socket.onopen = () => this.#say(hello);
    socket.onmessage = ({ data }) => {
      this.#await(false);
      this.#hear(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => this.#ended(code, reason);
  }

  // A browser does not show pings, so a server that is silent is asked; then it is given up. It may
  // take minutes until the socket itself notices.
  #await(isPinged) {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      if (isPinged || !this.#isWelcome) {
        this.#socket.close();
        this.#ended(1006, "silent");
      } else {
        this.#say({ type: "ping" });
        this.#await(true);
      }
    }, this.#pingEveryMs + GRACE_MS);
  }

  #forget() {
    clearTimeout(this.#silence);
    this.#isWelcome = false;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
  }

  #ended(code, reason) {
    this.#forget();
    if (FINAL.has(code)) return this.#heard({ type: "closed", code, reason });
    if (Date.now() > this.#welcomeAt + USEFUL_AFTER_MS) this.#failures = 0;
    const pauseMs = Math.min(PAUSE_MIN_MS * 2 ** this.#failures, PAUSE_MAX_MS);
    this.#failures += 1;
    const jitter = 0.5 + Math.random() / 2;
    this.#retry = setTimeout(() => this.#connect(), this.#comeBackInMs + pauseMs * jitter);
    this.#comeBackInMs = 0;
  }

  #say(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  #hear(frame) {
    const state = this.#state;
    if (frame.type === "welcome") {
      const { token = state.token, ...welcome } = frame;
      state.token = token;
      if (frame.mailbox !== state.mailbox) [state.mailbox, state.last_seq] = [frame.mailbox, 0];
      this.#save(state);
      [this.#isWelcome, this.#welcomeAt] = [true, Date.now()];
      this.#pingEveryMs = frame.ping_every_ms;
      this.#await(false);
      // Under their old ids: each is delivered once.
      for (const unanswered of Object.values(state.outbox)) this.#say(unanswered);
      this.#heard(welcome);
    } else if (frame.type === "message" || frame.type === "outcome") {
      if (frame.seq > state.last_seq) { // else it was seen on an earlier connection
        this.#heard(frame);
        state.last_seq = frame.seq;
        this.#save(state);
      }
      this.#say({ type: "ack", seq: frame.seq });
    } else if (frame.type === "accepted" || frame.type === "rejected") {
      this.#answered(frame);
    } else if (frame.type === "bye") {
      this.#comeBackInMs = frame.reconnect_in_ms;
    } else if (frame.type === "error") {
      this.#heard(frame); // a bug in this program
    }
  }

  #answered(frame) {
    const { outbox } = this.#state;
    if (!outbox[frame.id]) return;
    if (frame.retry_after_ms !== undefined) {
      setTimeout(() => this.#retrySend(frame.id), frame.retry_after_ms);
      return;
    }
    delete outbox[frame.id];
    this.#save(this.#state);
    this.#heard(frame);
  }

  #retrySend(id) {
    const sent = this.#state.outbox[id];
    if (sent && this.#isWelcome) this.#say(sent);
  }
}
