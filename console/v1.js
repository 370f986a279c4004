// The v1 protocol, as a device speaks it: one device over reloads, restarts and lost connections.

import { Connection } from "./connection.js";
import { recall, remember } from "./tab.js";

const SUBPROTOCOL = "switchboard.v1.json";

/** What was shown is acked after this time, or when so many wait: well below the server's 256 in flight. */
const ACK_MS = 50;
const UNACKED_MAX = 64;
/** Presence of many devices is shown together. */
const PRESENCE_MS = 50;
/** Devices in one page of the list, and pages asked for: the rest is only said to be there. */
const DEVICES_PER_PAGE = 1_000;
const DEVICE_PAGES_MAX = 5;
/** Devices that one connection may watch. */
const WATCHED_MAX = 1_000;
/** The wait before a retry where the server names none. */
const RETRY_MS = 2_000;

/** What each code of a refusal means: what happened, and the rest of a sentence. */
const REFUSALS = {
  no_such_device: ["No such device", "nobody has this id, or its time is over."],
  store_full: ["No space left", "the server keeps as much as it may; try again later."],
  mailbox_full: ["Its mailbox is full", "the device must read first; try again later."],
  outcomes_full: ["Too much is open", "too many of your messages wait for their receipts; try again later."],
  too_large: ["Too large", "the server or the device takes only shorter messages."],
  not_allowed: ["Not allowed", "this device may not send to that one."],
  rate_limited: ["Too fast", "wait a moment, then try again."],
  id_reused: ["Mixed up", "another message went by the same name."],
  durability_unavailable: ["Cannot be kept", "the device takes messages only while it is connected."],
  store_unavailable: ["Not stored", "the server cannot write to its disk now."],
  bad_request: ["Not understood", "the server could not make sense of this message."],
};

/** Why a message that was accepted did not arrive. */
const ENDS = {
  refused: ["Refused", "the device did not take it."],
  expired: ["Expired", "its time was over before the device took it."],
  cancelled: ["Cancelled", "it was taken back."],
  evicted: ["Not delivered", "the device's time is over, and its mailbox with it."],
};

/**
 * A connection that speaks v1. Its device, its cursor and what waits for an answer are kept for the
 * tab: after a reload, a restart or a lost connection it goes on where it was.
 *
 * Every message asks for a receipt. A device of the text protocol cannot give one, and only the
 * server's answer tells who is one; so to a device that was not written to before, one message goes
 * ahead and the others wait for its answer, which keeps their order.
 */
export class V1Connection extends Connection {
  /** Called before what was shown is acked: from then on only the page has it. */
  onshown = () => {};

  /** `{device, token, mailbox}`, or null before there is one. */
  #self = recall("device");
  /** All up to here was shown. */
  #lastSeq = recall("last_seq", 0);
  #ackedSeq = 0;
  #ackTimer = null;
  /** What has no answer yet, oldest first: id -> `{id, to, text, isSent, notBefore}`. */
  #unanswered = new Map();
  /** Whether a device gives receipts, as far as is known. */
  #givesReceipts = new Map();
  #retryTimer = null;
  #longestFrame = Infinity;
  /** Requests without their answer yet, by id. */
  #asked = new Map();
  #askedCount = 0;
  #known = new Map();
  #hasMore = false;
  #mayList = true;
  #watched = new Set();
  #ticksToSkip = 0;
  #presenceTimer = null;

  constructor(url) {
    super(url, [SUBPROTOCOL]);
    for (const { id, to, text } of recall("unanswered", [])) this.#wait({ id, to, text });
  }

  get isAnswerDue() {
    return this.#asked.size > 0 || [...this.#unanswered.values()].some(({ isSent }) => isSent);
  }

  /** Ids of the messages that wait for an answer, also those of before a reload. */
  get unanswered() {
    return [...this.#unanswered.keys()];
  }

  /** Sends `text` to the device `to`; its progress is told under `id`. Needs `isOpen`. */
  send({ id, to, text }) {
    if (frameLen(sendFrame({ id, to, text }, true)) > this.#longestFrame) {
      this.#rejected(id, "too_large");
      return;
    }
    this.#wait({ id, to, text });
    this.#keepUnanswered();
    this.#sendWaiting();
  }

  /** Asks who is there; every answer also proves that the connection lives. */
  refresh() {
    if (!this.isOpen || this.#asked.size > 0) return;
    if (this.#ticksToSkip > 0) this.#ticksToSkip -= 1;
    else if (this.#mayList) this.#askDevices(new Map(), null, 1);
    else this.#ask({ type: "ping" }, () => {});
  }

  /** Forgets who it was: the next connection is a new device. */
  becomeNew(token = null) {
    this.#self = token === null ? null : { token };
    this.#lastSeq = 0;
    remember("device", this.#self);
    remember("last_seq", null);
    for (const id of this.#unanswered.keys()) this.onprogress(id, { name: "unknown" });
    this.#unanswered.clear();
    this.#keepUnanswered();
  }

  greet() {
    const { token, mailbox } = this.#self ?? {};
    this.#say({ type: "hello", token, mailbox, last_seq: mailbox && this.#lastSeq });
  }

  verdict(code, reason) {
    if (code === 4409) return { name: "taken-over" };
    if (code === 4401) return { name: "refused", reason };
    return null;
  }

  dropped() {
    clearTimeout(this.#ackTimer);
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#presenceTimer);
    this.#ackTimer = this.#presenceTimer = null;
    this.#asked.clear();
    this.#watched.clear();
    for (const message of this.#unanswered.values()) {
      message.isSent = false;
      message.notBefore = 0;
      this.onprogress(message.id, { name: "held" });
    }
  }

  receive(data) {
    const frame = JSON.parse(data);
    this.#answers[frame.type]?.(frame, data);
  }

  #answers = {
    welcome: (frame) => this.#welcomed(frame),
    message: (frame, data) => this.#inOrder(frame, () => this.#shown(frame, data)),
    outcome: (frame) => this.#inOrder(frame, () => this.#ended(frame)),
    accepted: (frame) => this.#accepted(frame),
    rejected: (frame) => this.#refused(frame, frame.code),
    error: (frame) => this.#refused(frame, "bad_request"),
    devices: (frame) => this.#answered(frame),
    watching: (frame) => this.#answered(frame),
    pong: (frame) => this.#answered(frame),
    presence: (frame) => this.#presence(frame),
    expiring: ({ at_ms }) =>
      this.onnote(`This device's token ends at ${new Date(at_ms).toLocaleTimeString()}; the connection ends with it.`),
    bye: ({ reconnect_in_ms }) => this.comeBackIn(reconnect_in_ms),
  };

  #say(frame) {
    this.transmit(JSON.stringify(frame));
  }

  // ---- who this device is -------------------------------------------------------------------

  #welcomed({ device, token, mailbox, resumed, last_seq, max_message_bytes }) {
    const before = this.#self;
    this.#self = { device, token: token ?? before?.token, mailbox };
    this.#longestFrame = max_message_bytes;
    const isSameMailbox = before?.mailbox === mailbox;
    // Another tab may have read on as this device.
    this.#lastSeq = isSameMailbox ? Math.max(this.#lastSeq, last_seq) : last_seq;
    this.#ackedSeq = last_seq;
    remember("device", this.#self);
    remember("last_seq", this.#lastSeq);
    this.#ticksToSkip = 0;
    this.opened(device);
    if (before?.mailbox && !resumed) {
      this.onnote("The server no longer has this device's old mailbox: what waited in it is lost.");
    }
    this.refresh();
    this.#sendWaiting();
  }

  // ---- what comes ---------------------------------------------------------------------------

  /** Takes what has not been seen, once, and acks it a little later. */
  #inOrder({ seq }, take) {
    if (seq > this.#lastSeq) {
      take();
      this.#lastSeq = seq;
    }
    if (seq - this.#ackedSeq >= UNACKED_MAX) this.#ack();
    else this.#ackTimer ??= setTimeout(() => this.#ack(), ACK_MS);
  }

  #ack() {
    clearTimeout(this.#ackTimer);
    this.#ackTimer = null;
    // Before the server forgets them: a reload must not show them twice, nor lose them.
    this.keep();
    this.#say({ type: "ack", seq: this.#lastSeq });
    this.#ackedSeq = this.#lastSeq;
  }

  /** Keeps for this tab what was shown and that it was. */
  keep() {
    this.onshown();
    remember("last_seq", this.#lastSeq);
  }

  #shown({ from, body, sent_at_ms }, data) {
    const text = typeof body === "string" ? body : compactBody(data);
    this.onmessage({ from, text, sentAtMs: sent_at_ms });
  }

  #ended({ id, outcome, maybe_seen, reason }) {
    if (outcome === "delivered") {
      this.onprogress(id, { name: "delivered" });
      return;
    }
    const [what, why] = ENDS[outcome] ?? ["Not delivered", "the server does not say why."];
    const seen = maybe_seen ? " It may have been seen all the same." : "";
    this.onprogress(id, { name: "returned", what, why: `${reason ? `“${reason}”` : why}${seen}` });
  }

  // ---- what goes ----------------------------------------------------------------------------

  #wait({ id, to, text }) {
    this.#unanswered.set(id, { id, to, text, isSent: false, notBefore: 0 });
  }

  #keepUnanswered() {
    const kept = [...this.#unanswered.values()].map(({ id, to, text }) => ({ id, to, text }));
    remember("unanswered", kept.length > 0 ? kept : null);
  }

  #sendWaiting() {
    if (!this.isOpen) return;
    const now = performance.now();
    const all = [...this.#unanswered.values()];
    const probed = new Set(all.filter(({ isSent }) => isSent).map(({ to }) => to));
    for (const message of all) {
      const isKnown = this.#givesReceipts.has(message.to);
      if (message.isSent || message.notBefore > now || (!isKnown && probed.has(message.to))) continue;
      probed.add(message.to);
      message.isSent = true;
      this.transmit(sendFrame(message, this.#givesReceipts.get(message.to) ?? true));
      this.onprogress(message.id, { name: "sent" });
    }
  }

  #accepted({ id, durability }) {
    const message = this.#settled(id);
    if (!message) return;
    const isHandedOver = durability === "none";
    this.#givesReceipts.set(message.to, !isHandedOver);
    this.onprogress(id, isHandedOver ? { name: "handed-over" } : { name: "accepted", durability });
    this.#sendWaiting();
  }

  #refused({ id, message: words, retry_after_ms }, code) {
    const message = this.#unanswered.get(id);
    if (!message) {
      if (!this.#answered({ id, code })) this.onnote(`The server says: ${words}`);
    } else if (code === "durability_unavailable" && this.#givesReceipts.get(message.to) !== false) {
      this.#givesReceipts.set(message.to, false);
      message.isSent = false;
    } else if (code === "store_unavailable" || (code === "rate_limited" && retry_after_ms)) {
      this.#retryIn(message, retry_after_ms ?? RETRY_MS, code);
    } else {
      this.#settled(id);
      this.#rejected(id, code, words);
    }
    this.#sendWaiting();
  }

  /** Nobody knows whether it was taken: the same id again makes it once. */
  #retryIn(message, waitMs, code) {
    message.isSent = false;
    message.notBefore = performance.now() + waitMs;
    this.onprogress(message.id, { name: "held", why: REFUSALS[code][1] });
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => this.#sendWaiting(), waitMs + 1);
  }

  #rejected(id, code, words = "") {
    const [what, why] = REFUSALS[code] ?? ["Not sent", words];
    this.onprogress(id, { name: "rejected", what, why });
  }

  #settled(id) {
    const message = this.#unanswered.get(id);
    this.#unanswered.delete(id);
    this.#keepUnanswered();
    return message;
  }

  // ---- who is there -------------------------------------------------------------------------

  #ask(frame, answered) {
    this.#askedCount += 1;
    const id = `ask-${this.#askedCount}`;
    this.#asked.set(id, answered);
    this.#say({ ...frame, id });
  }

  /** Gives whether it answers something that was asked. */
  #answered(frame) {
    const answered = this.#asked.get(frame.id);
    this.#asked.delete(frame.id);
    answered?.(frame);
    return answered !== undefined;
  }

  #askDevices(found, after, page) {
    this.#ask({ type: "devices", limit: DEVICES_PER_PAGE, after: after ?? undefined }, (frame) => {
      if (frame.code) {
        this.#mayList = false;
        this.ondevices({ id: this.#self.device, devices: null, more: 0 });
        return;
      }
      for (const { device, online, since_ms } of frame.devices) {
        found.set(device, { id: device, online, sinceMs: since_ms });
      }
      if (frame.next && page < DEVICE_PAGES_MAX) this.#askDevices(found, frame.next, page + 1);
      else this.#listed(found, Boolean(frame.next), page);
    });
  }

  #listed(found, hasMore, pages) {
    this.#known = found;
    this.#hasMore = hasMore;
    // A long list is asked for less often.
    this.#ticksToSkip = pages - 1;
    this.#tellDevices();
    this.#watch();
  }

  /** Watches those of the list, the connected first, as many as may be. */
  #watch() {
    const sorted = [...this.#known.values()].sort((a, b) => Number(b.online) - Number(a.online));
    const wanted = new Set(sorted.slice(0, WATCHED_MAX).map(({ id }) => id));
    const gone = [...this.#watched].filter((id) => !wanted.has(id));
    const added = [...wanted].filter((id) => !this.#watched.has(id));
    this.#watched = wanted;
    if (gone.length > 0) this.#ask({ type: "unwatch", devices: gone }, () => {});
    if (added.length > 0) this.#ask({ type: "watch", devices: added }, () => {});
  }

  #presence({ device, online, at_ms }) {
    const known = this.#known.get(device);
    if (!known || (known.online === online && known.sinceMs === at_ms)) return;
    this.#known.set(device, { id: device, online, sinceMs: at_ms });
    this.#presenceTimer ??= setTimeout(() => this.#tellDevices(), PRESENCE_MS);
  }

  #tellDevices() {
    clearTimeout(this.#presenceTimer);
    this.#presenceTimer = null;
    this.ondevices({ id: this.#self.device, devices: [...this.#known.values()], more: this.#hasMore ? Infinity : 0 });
  }
}

function sendFrame({ id, to, text }, receipt) {
  return JSON.stringify({ type: "send", id, to, body: text, receipt: receipt || undefined });
}

function frameLen(text) {
  return new TextEncoder().encode(text).length;
}

/** The body of a message frame as compact JSON; its numbers as they were written, if the browser can. */
function compactBody(data) {
  const { body } = JSON.parse(data, (_, value, written) =>
    typeof value === "number" && JSON.rawJSON && written ? JSON.rawJSON(written.source) : value,
  );
  return JSON.stringify(body);
}
