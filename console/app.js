// The page: one device among the others. Wires the connection to what is shown; decides nothing about the protocol.

import { Connection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { Devices } from "./devices.js";
import { isDeviceId, meaningOf } from "./protocol.js";

const COPIED_MS = 1_600;
const HINT = "Enter sends, Shift + Enter starts a new line.";

const byId = (id) => document.getElementById(id);
const serverUrl = new URL("./", location.href.replace(/^http/, "ws").split("#")[0]).href;

const connection = new Connection(serverUrl);
const devices = new Devices();
const conversation = new Conversation();

/** This device's id; the last one while there is none. Empty before the first connection. */
let myId = "";
let unread = 0;
/** Since when there is no connection, as `{reason, retryAt}`; `retryAt` is null while trying. */
let outage = null;

// ---- the connection -------------------------------------------------------------------------

connection.onstate = (state) => {
  if (state.name === "open") opened(state.id);
  else if (state.name === "waiting") lost(state);
  else if (outage) outage.retryAt = null;
  showState(state.name);
};

connection.oninfo = (info) => {
  devices.show(info);
  showHint();
};

connection.onmessage = ({ from, text }) => {
  conversation.received(from, text);
  if (document.hidden) unread += 1;
  showTitle();
};

connection.onstray = (text) => conversation.note(`The server says: ${text}`);

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

// ---- what is shown --------------------------------------------------------------------------

function showState(name) {
  byId("status").dataset.state = name;
  byId("status-text").textContent = { open: "Connected", connecting: "Connecting", waiting: "Offline" }[name];
  document.body.dataset.connected = String(name === "open");
  byId("send").setAttribute("aria-disabled", String(name !== "open"));
  byId("my-id").disabled = name !== "open";
  byId("my-id-hint").textContent = name === "open" ? "Click to copy" : myId ? "Your next id will be another" : "Not assigned yet";
  showOutage();
  showTitle();
  showHint();
}

function showOutage() {
  if (!outage && document.activeElement === byId("reconnect")) text.focus();
  byId("outage").hidden = !outage;
  if (!outage) return;
  byId("outage-title").textContent = myId ? "Connection lost." : "The server cannot be reached.";
  byId("outage-detail").textContent = [outage.reason, myId && "You will get a new id."].filter(Boolean).join(" ");
  showCountdown();
}

function showCountdown() {
  if (!outage) return;
  const seconds = Math.ceil((outage.retryAt - performance.now()) / 1_000);
  byId("outage-countdown").textContent =
    outage.retryAt === null || seconds <= 0 ? "Trying now" : `Trying again in ${seconds} s`;
}

function showId() {
  const groups = myId.match(/\d{1,3}(?=(\d{3})*$)/g);
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

/** Shows what is wrong with the form or, if nothing is, what a person may want to know. */
function showHint(mistake = "") {
  const id = to.value.trim();
  const gone = connection.isOpen && isDeviceId(id) && devices.surelyGone(id);
  const advice = id === myId && id ? "This is your own id: the message comes back to you." : HINT;
  byId("composer-hint").textContent = mistake || (gone ? `${id} is not connected now.` : advice);
  byId("composer-hint").dataset.tone = mistake ? "mistake" : gone ? "warning" : "";
}

function address(id) {
  to.value = id;
  addressed();
  text.focus();
}

function addressed() {
  to.removeAttribute("aria-invalid");
  devices.mark(to.value.trim());
  showHint();
}

function submit() {
  const id = to.value.trim();
  const words = text.value;
  if (!isDeviceId(id)) return refuse(to, id ? "An id is a number, such as 100000001." : "To whom? Choose a device or type its id.");
  if (!words) return refuse(text, "Write a message first.");
  if (!connection.isOpen) return refuse(text, "Not connected. Your message stays here until you are.");
  const settle = conversation.sent(id, words, meaningOf);
  connection.send(id, words).then(settle);
  text.value = "";
  showHint();
}

function refuse(field, mistake) {
  field.setAttribute("aria-invalid", "true");
  field.focus();
  showHint(mistake);
  announce(mistake);
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
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  unread = 0;
  showTitle();
  connection.wake();
});
addEventListener("online", () => connection.wake());
addEventListener("hashchange", addressFromHash);
setInterval(showCountdown, 500);

byId("websocat").textContent = `websocat ${serverUrl.replace(/\/$/, "")}`;
addressFromHash();
connection.connect();
