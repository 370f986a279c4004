// The text protocol, as a device speaks it: what a server's text means, and how a send is written.

const INFO = /^Your ID: (\d+)\nConnected Devices: \n\[([^\]]*)\]\nChat usage: /;
const MESSAGE = /^(\d+):([\s\S]*)$/;
const MORE = /^\.\.\. and (\d+) more$/;

/** What each refusal means, as the rest of a sentence. Keyed by the server's exact text. */
const MEANINGS = new Map([
  ["Invalid destinationId", "no device with this id is connected."],
  ["Duplicate message", "your last message was the same, less than 5 seconds ago."],
  ["Invalid Command", "the server does not know this command."],
  ["Error reading the command", "the server could not read this command."],
]);

/** Asks for the info text. */
export const HELP = "help";

/** The command that sends `text` to the device `to`. */
export function sendCommand(to, text) {
  return `send,${to},${text}`;
}

/** Whether `to` can stand in a send: decimal digits, however many. */
export function isDeviceId(to) {
  return /^[0-9]+$/.test(to);
}

/** What a refusal means, or an empty string for a text this page does not know. */
export function meaningOf(refusal) {
  return MEANINGS.get(refusal) ?? "";
}

/**
 * Reads one text frame from the server:
 * `{kind: "info", id, devices, more}`, `{kind: "message", from, text}` or `{kind: "refusal", text}`.
 *
 * A message always starts with its sender's digits and a colon, which neither the info text nor a
 * refusal does: no message can pass for an answer. Ids stay strings, since they may outgrow a number.
 */
export function readFrame(frame) {
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
