#!/usr/bin/env node
// Runs the binary that npm installed for this platform, in the manner of esbuild: each platform has
// a package, all are optional dependencies of this one, and npm takes the one that fits.

import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { isatty } from "node:tty";

const BINARIES = {
  "linux x64": "switchboard-broker-linux-x64-gnu/bin/switchboard",
};

function fail(message) {
  console.error(`switchboard: ${message}`);
  process.exit(1);
}

function binary() {
  const platform = `${process.platform} ${process.arch}`;
  const file = BINARIES[platform];
  if (file === undefined) {
    fail(`there is no binary for ${platform}, only for ${Object.keys(BINARIES).join(", ")}`);
  }
  try {
    return createRequire(import.meta.url).resolve(file);
  } catch {
    const name = file.split("/")[0];
    fail(
      `${name}, which holds the binary, is missing: install without --omit=optional and on the platform ` +
        `that runs it; from files, name ${name}-VERSION.tgz as well`,
    );
  }
}

const child = spawn(binary(), process.argv.slice(2), { stdio: "inherit" });

child.on("error", (error) => fail(`cannot start the binary, which needs glibc: ${error.message}`));

const hadTerminal = isatty(0);
/** The server drains, and a second signal would end it at once. */
let isEnding = false;

for (const signal of ["SIGTERM", "SIGHUP", "SIGINT"]) {
  process.on(signal, () => {
    // SIGHUP is to reload, except where it says that the terminal is gone.
    isEnding ||= signal !== "SIGHUP" || (hadTerminal && !isatty(0));
    // A terminal sends Ctrl-C to the binary as well, and a second one ends a server without draining.
    if (signal !== "SIGINT" || !isatty(0)) {
      child.kill(signal);
    }
  });
}

// npx and `npm run` do not pass signals on, and may be killed: what they started would go on without
// them, and keep its port. There is no signal for the end of a parent in Node.js, so it is looked for.
// A shell is different: what it started with `nohup` or `disown` is meant to outlive it.
const PARENTS_MS = 500;

/** Parent and name of a process (proc_pid_stat(5)); none of one that is gone. */
function parentAndName(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const end = stat.lastIndexOf(")");
    return { parent: Number(stat.slice(end + 2).split(" ")[1]), name: stat.slice(stat.indexOf("(") + 1, end) };
  } catch {
    return {};
  }
}

/** The processes between this one and npm, by their ids. npm runs a command by `sh -c`, and not each sh
 * puts the command in its own place. */
function parents() {
  const { parent, name } = parentAndName(process.ppid);
  return name === "sh" ? `${process.ppid} ${parent}` : `${process.ppid}`;
}

if (process.env.npm_config_user_agent !== undefined) {
  const started = parents();
  const watch = setInterval(() => {
    if (parents() !== started) {
      clearInterval(watch);
      if (!isEnding) child.kill("SIGTERM");
    }
  }, PARENTS_MS);
}

child.on("exit", (code, signal) => {
  if (signal !== null) {
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  } else {
    process.exit(code);
  }
});
