// The text protocol, as a device speaks it: what a server's text means, and what became of each send.

import { Connection, isDeviceId } from "./connection.js";

const INFO = /^Your ID: (\S+)\nConnected Devices: \n\[([^\]]*)\]\nChat usage: /;
/** A name that holds a colon ends at it here: this protocol cannot tell. */
const MESSAGE = /^(\d+|[A-Za-z][A-Za-z0-9._@-]*):([\s\S]*)$/;
const MORE = /^\.\.\. and (\d+) more$/;

/** What each refusal means, as the rest of a sentence. Keyed by the server's exact text. */
const MEANINGS = new Map([
  ["Invalid destinationId", "no device with this id is connected."],
  ["Duplicate message", "your last message was the same, less than 5 seconds ago."],
  ["Invalid Command", "the server does not know this command."],
  ["Error reading the command", "the server could not read this command, or no device has this name."],
  ["Mailbox full", "the device is away and its mailbox is full."],
]);

/** Asks for the info text. */
const HELP = "help";

/**
 * A connection that speaks the text protocol: a new device each time.
 *
 * The server answers a connection's commands in order and a successful send not at all, so each
 * send is followed by `help`: the info text that comes back proves that the send was accepted.
 */
export class TextConnection extends Connection {
  /** Commands without their answer yet, oldest first: the id of a send, or null for `help`. */
  #due = [];

  /** Nothing outlives this connection. */
  unanswered = [];

  get isAnswerDue() {
    return this.#due.length > 0;
  }

  /** The welcome is an info text that nobody has to ask for. */
  greet() {
    this.#due = [null];
  }

  /** Sends `text` to the device `to`; its progress is told under `id`. Needs `isOpen`. */
  send({ id, to, text }) {
    this.#command(`send,${to},${text}`, id);
    this.#command(HELP, null);
  }

  /** Asks for the info text, unless an answer is due anyway. */
  refresh() {
    if (this.isOpen && !this.isAnswerDue) this.#command(HELP, null);
  }

  receive(data) {
    const frame = readFrame(data);
    if (frame.kind === "info") this.#informed(frame);
    else if (frame.kind === "message") this.onmessage({ from: frame.from, text: frame.text, sentAtMs: Date.now() });
    else this.#refused(frame.text);
  }

  dropped() {
    const sends = this.#due.splice(0).filter((id) => id !== null);
    for (const id of sends) this.onprogress(id, { name: "unknown" });
  }

  #command(text, id) {
    this.#due.push(id);
    this.transmit(text);
  }

  #informed({ id, devices, more }) {
    while (this.#due.length > 0) {
      const send = this.#due.shift();
      if (send === null) break;
      this.onprogress(send, { name: "handed-over" });
    }
    if (!this.isOpen) this.opened(id);
    this.ondevices({ id, devices: devices.map((each) => ({ id: each, online: true, sinceMs: null })), more });
  }

  #refused(answer) {
    const send = this.#due[0];
    if (!send) {
      this.onnote(`The server says: ${answer}`);
      return;
    }
    this.#due.shift();
    this.onprogress(send, { name: "rejected", what: answer, why: MEANINGS.get(answer) ?? "" });
  }
}

/**
 * Reads one text frame from the server:
 * `{kind: "info", id, devices, more}`, `{kind: "message", from, text}` or `{kind: "refusal", text}`.
 *
 * A message always starts with its sender's id and a colon, which neither the info text nor a
 * refusal does: no message can pass for an answer. Ids stay strings, since they may outgrow a number.
 */
function readFrame(frame) {
  const message = MESSAGE.exec(frame);
  if (message) return { kind: "message", from: message[1], text: message[2] };
  const info = INFO.exec(frame);
  if (info) return { kind: "info", id: info[1], ...readDevices(info[2]) };
  return { kind: "refusal", text: frame };
}

function readDevices(list) {
  const devices = [];
  let more = 0;
  for (const item of list.split(", ")) {
    const rest = MORE.exec(item);
    if (rest) more = Number(rest[1]);
    else if (isDeviceId(item)) devices.push(item);
  }
  return { devices, more };
}
