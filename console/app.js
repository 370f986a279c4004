// The page: one device among the others. Wires the connection to what is shown; decides nothing about the protocol.

import { isDeviceId } from "./connection.js";
import { Conversation } from "./conversation.js";
import { Devices, awaySince } from "./devices.js";
import { recall, remember } from "./tab.js";
import { TextConnection } from "./text.js";
import { V1Connection } from "./v1.js";

const COPIED_MS = 1_600;
const HINT = "Enter sends, Shift + Enter starts a new line.";
const NOT_CONNECTED = "Not connected. Your message stays here until you are.";
const PROTOCOL_HINTS = {
  v1: "Keeps the id; messages wait.",
  text: "A new id each time.",
};

const byId = (id) => document.getElementById(id);
const serverUrl = new URL("./", location.href.replace(/^http/, "ws").split("#")[0]).href;

const devices = new Devices();
const conversation = new Conversation();

let connection = null;
let protocol = recall("protocol") === "text" ? "text" : "v1";
/** This device's id; the last one while there is none. Empty before the first connection. */
let myId = "";
let unread = 0;
/** Since when there is no connection, as `{reason, retryAt}`; `retryAt` is null while trying. */
let outage = null;
/** Why only a person can go on, as a connection's state says it; null while that is not so. */
let halt = null;

// ---- the connection -------------------------------------------------------------------------

/** Speaks `protocol` from now on; what it says of itself is shown. */
function speak() {
  connection?.end();
  connection = protocol === "text" ? new TextConnection(serverUrl) : new V1Connection(serverUrl);
  connection.onstate = stateChanged;
  connection.ondevices = devicesChanged;
  connection.onmessage = received;
  connection.onprogress = progressed;
  connection.onnote = (words) => conversation.note(words);
  connection.onshown = () => conversation.keep();
  connection.connect();
}

function stateChanged(state) {
  halt = state.name === "taken-over" || state.name === "refused" ? state : null;
  if (state.name === "open") opened(state.id);
  else if (state.name === "waiting") lost(state);
  else if (halt) halted();
  else if (outage) outage.retryAt = null;
  showState(state.name);
}

function devicesChanged(list) {
  devices.show(list);
  showHint();
}

function received(message) {
  conversation.received(message);
  if (document.hidden) unread += 1;
  showTitle();
}

function progressed(id, progress) {
  const to = conversation.progress(id, progress);
  if (to === null) return;
  if (progress.name === "delivered") announce(`Delivered to ${to}.`);
  else if (progress.name === "handed-over") announce(`Accepted for ${to}.`);
  else if (progress.name === "accepted" && isAway(to)) announce(`Stored: it waits for ${to}.`);
  else if (progress.what) announce(`To ${to}: ${progress.what}. ${progress.why}`);
}

function opened(id) {
  if (outage) {
    const before = myId && myId !== id ? ` It was ${myId}; messages to that id no longer come here.` : "";
    conversation.note(`Connected. Your id is ${id}.${before}`);
  }
  outage = null;
  myId = id;
  showId();
  announce(`Connected. Your id is ${id}.`);
}

function lost({ reason, retryAt }) {
  if (!outage) {
    const what = myId ? "Connection lost." : "No connection.";
    conversation.note(`${what} ${reason}`.trim());
    announce(`${what} ${reason} Trying again.`);
  }
  outage = { reason: reason || outage?.reason || "", retryAt };
}

/** What a person must decide; the notice is read aloud by itself. */
function halted() {
  outage = null;
  const isTaken = halt.name === "taken-over";
  conversation.note(isTaken ? "Another tab or program has become this device." : `The server refused this device: ${halt.reason}.`);
}

function switchTo(name) {
  if (name === protocol) return;
  protocol = name;
  remember("protocol", name);
  outage = null;
  halt = null;
  conversation.note(name === "v1" ? "Now speaking v1." : "Now speaking the text protocol, as a device without a mailbox.");
  speak();
}

// ---- what is shown --------------------------------------------------------------------------

const STATE_WORDS = {
  open: "Connected",
  connecting: "Connecting",
  waiting: "Offline",
  "taken-over": "Taken over",
  refused: "Refused",
};

function showState(name) {
  byId("status").dataset.state = name;
  byId("status-text").textContent = STATE_WORDS[name];
  document.body.dataset.connected = String(name === "open");
  byId("send").setAttribute("aria-disabled", String(name !== "open"));
  byId("my-id").disabled = name !== "open";
  byId("my-id-hint").textContent = name === "open" ? "Click to copy" : idHint();
  showProtocol();
  showOutage();
  showNotice();
  showTitle();
  if (name === "open" && problem === NOT_CONNECTED) problem = "";
  showHint();
}

function idHint() {
  if (!myId) return "Not assigned yet";
  if (halt) return "Not connected";
  return protocol === "v1" ? "Still yours" : "Your next id will be another";
}

function showProtocol() {
  byId("protocol").querySelector(`[value="${protocol}"]`).checked = true;
  byId("protocol-hint").textContent = PROTOCOL_HINTS[protocol];
}

function showOutage() {
  if (!outage && document.activeElement === byId("reconnect")) text.focus();
  byId("outage").hidden = !outage;
  if (!outage) return;
  byId("outage-title").textContent = myId ? "Connection lost." : "The server cannot be reached.";
  const meanwhile = protocol === "v1" ? "What is sent to you waits." : "You will get a new id.";
  byId("outage-detail").textContent = [outage.reason, myId && meanwhile].filter(Boolean).join(" ");
  showCountdown();
}

function showNotice() {
  if (!halt && byId("notice").contains(document.activeElement)) text.focus();
  byId("notice").hidden = !halt;
  if (!halt) return;
  const isTaken = halt.name === "taken-over";
  byId("notice-title").textContent = isTaken ? "This device is in use elsewhere." : "The server refused this device:";
  byId("notice-detail").textContent = isTaken
    ? "Another tab, perhaps a copy of this one, has become it. Only one at a time can be."
    : `${halt.reason}.`;
  byId("take-back").textContent = isTaken ? "Take it back" : "Try again";
  byId("token-form").hidden = isTaken;
}

function showCountdown() {
  if (!outage) return;
  const seconds = Math.ceil((outage.retryAt - performance.now()) / 1_000);
  byId("outage-countdown").textContent =
    outage.retryAt === null || seconds <= 0 ? "Trying now" : `Trying again in ${seconds} s`;
}

function showId() {
  const groups = /^\d+$/.test(myId) ? myId.match(/\d{1,3}(?=(\d{3})*$)/g) : [myId];
  byId("my-id").dataset.long = String(myId.length > 14);
  byId("my-id-digits").replaceChildren(
    ...groups.map((digits) => Object.assign(document.createElement("span"), { textContent: digits })),
  );
  byId("second-tab").href = `./#to=${myId}`;
  byId("example").textContent = `send,${myId},hello`;
}

function showTitle() {
  const name = document.body.dataset.connected === "true" ? myId : "Offline";
  document.title = `${unread > 0 ? `(${unread}) ` : ""}${name} · Switchboard`;
}

/** Says something to a screen reader, once. */
function announce(text) {
  byId("announcer").textContent = text;
}

// ---- the form -------------------------------------------------------------------------------

const composer = byId("composer");
const to = byId("to");
const text = byId("text");

/** What is wrong with the form, until somebody mends it; "" is nothing. */
let problem = "";

/** Shows what is wrong with the form or, if nothing is, what a person may want to know. */
function showHint() {
  const warning = connection.isOpen ? warningAbout(to.value.trim()) : "";
  const advice = to.value.trim() === myId && myId ? "This is your own id: the message comes back to you." : HINT;
  byId("composer-hint").textContent = problem || warning || advice;
  byId("composer-hint").dataset.tone = problem ? "problem" : warning ? "warning" : "";
}

function warningAbout(id) {
  if (!isDeviceId(id) || id === myId) return "";
  const known = devices.stateOf(id);
  if (isAway(id)) return `${id} is ${awaySince(known.sinceMs)}: your message waits for it.`;
  if (known !== null) return "";
  return protocol === "v1" ? `No device ${id} is known here.` : `${id} is not connected now.`;
}

function isAway(id) {
  const known = devices.stateOf(id);
  return Boolean(known) && !known.online;
}

function address(id) {
  to.value = id;
  addressed();
  text.focus();
}

function addressed() {
  to.removeAttribute("aria-invalid");
  devices.mark(to.value.trim());
  problem = "";
  showHint();
}

function submit() {
  const id = to.value.trim();
  const words = text.value;
  if (!isDeviceId(id)) return refuse(to, id ? "An id is a number, such as 100000001, or a name." : "To whom? Choose a device or type its id.");
  if (!words) return refuse(text, "Write a message first.");
  if (!connection.isOpen) return refuse(text, NOT_CONNECTED);
  const message = { id: newMessageId(), to: id, text: words };
  conversation.sent(message);
  connection.send(message);
  text.value = "";
  problem = "";
  showHint();
}

/** 128 random bits; `randomUUID` is missing where the page came over plain http. */
function newMessageId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function refuse(field, why) {
  field.setAttribute("aria-invalid", "true");
  field.focus();
  problem = why;
  showHint();
  announce(why);
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});

text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

text.addEventListener("input", () => {
  text.removeAttribute("aria-invalid");
  problem = "";
  showHint();
});

to.addEventListener("input", addressed);

// ---- copying --------------------------------------------------------------------------------

async function copy(words) {
  if (navigator.clipboard) return navigator.clipboard.writeText(words);
  // Plain http on another host than this one has no clipboard API.
  const field = Object.assign(document.createElement("textarea"), { value: words, className: "unseen" });
  document.body.append(field);
  const focused = document.activeElement;
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  if (!copied) throw new Error("the browser refused to copy");
}

/** Copies `words` and says so in `place` for a moment. */
async function copyAndSay(words, place) {
  const usual = (place.dataset.usual ??= place.textContent);
  const said = await copy(words).then(() => "Copied", () => "Copying failed: select and copy by hand");
  place.textContent = said;
  announce(said);
  setTimeout(() => place.textContent === said && (place.textContent = usual), COPIED_MS);
}

byId("my-id").addEventListener("click", () => copyAndSay(myId, byId("my-id-hint")));
byId("copy-websocat").addEventListener("click", (event) => copyAndSay(byId("websocat").textContent, event.target));

// ---- who this device is ---------------------------------------------------------------------

/** Becomes the device of `token` or, without one, a new device. */
function beAnother(token) {
  connection.becomeNew(token);
  // So that the note about the new id is shown.
  outage = { reason: "", retryAt: null };
  connection.connect();
}

// ---- the page's life ------------------------------------------------------------------------

function addressFromHash() {
  const id = new URLSearchParams(location.hash.slice(1)).get("to");
  if (id && isDeviceId(id)) address(id);
}

devices.onaddress = address;
conversation.onaddress = address;
conversation.onagain = (id, words) => {
  // A draft is not lost to it.
  text.value = [text.value, words].filter(Boolean).join("\n");
  address(id);
};
byId("reconnect").addEventListener("click", () => connection.connect());
byId("take-back").addEventListener("click", () => connection.connect());
byId("be-new").addEventListener("click", () => beAnother(null));
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = byId("token").value.trim();
  byId("token").value = "";
  if (token) beAnother(token);
});
byId("protocol").addEventListener("change", (event) => switchTo(event.target.value));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  unread = 0;
  showTitle();
  connection.wake();
});
addEventListener("pagehide", () => {
  conversation.keep();
  connection.keep();
  // A browser may freeze the page instead of ending it: the device would seem to be there.
  connection.end();
});
addEventListener("pageshow", (event) => {
  // Another page of this tab may have read on as this device.
  if (event.persisted) location.reload();
});
addEventListener("online", () => connection.wake());
addEventListener("hashchange", addressFromHash);
setInterval(showCountdown, 500);

byId("websocat").textContent = `websocat --linemode-strip-newlines ${serverUrl}`;
byId("origin").textContent = `--origin ${location.origin}`;
speak();
conversation.restore(connection.unanswered);
addressFromHash();
