// A device on the command line, with device.mjs:
//
//     node cli.mjs ws://127.0.0.1:8080/ state.json
//
// connects as the device whose token is in state.json, or as a new one. It sends each line of standard
// input that reads `ID TEXT`, and prints what it is told as lines of JSON. When the input ends, it ends as
// soon as all that it sent is answered.

import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { Device } from "./device.mjs";

if (process.argv.length !== 4) {
  console.error("usage: cli.mjs URL STATE_FILE");
  process.exit(2);
}
const [url, path] = process.argv.slice(2);
const state = existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : undefined;
let isAllSaid = false;

function save(state) {
  // The token proves who this is.
  writeFileSync(`${path}.new`, JSON.stringify(state), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

function heard(frame) {
  console.log(JSON.stringify(frame));
  if (frame.type === "closed") process.exit(1);
  endIfAnswered();
}

function endIfAnswered() {
  if (isAllSaid && device.unanswered === 0) device.close();
}

const device = new Device(url, { state, save, heard });
for await (const line of createInterface({ input: process.stdin })) {
  const [, to, text] = /^(\S+) ?(.*)$/.exec(line) ?? [];
  if (to) device.send(to, text, { receipt: true });
}
isAllSaid = true;
endIfAnswered();
