#!/usr/bin/env node
// Runs the binary that npm installed for this platform, in the manner of esbuild: each platform has
// a package, all are optional dependencies of this one, and npm takes the one that fits.

import { spawn } from "node:child_process";
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
    fail(`${file} is missing: was it installed with --omit=optional, or on another platform?`);
  }
}

const child = spawn(binary(), process.argv.slice(2), { stdio: "inherit" });

child.on("error", (error) => fail(`cannot start the binary, which needs glibc: ${error.message}`));

for (const signal of ["SIGTERM", "SIGHUP", "SIGINT"]) {
  process.on(signal, () => {
    // A terminal sends Ctrl-C to the binary as well, and a second one ends a server without draining.
    if (signal !== "SIGINT" || !isatty(0)) {
      child.kill(signal);
    }
  });
}

child.on("exit", (code, signal) => {
  if (signal !== null) {
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  } else {
    process.exit(code);
  }
});
