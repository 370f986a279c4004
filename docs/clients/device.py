"""A complete client of switchboard.v1.json, to copy. It needs `websockets` 10.4 or later, from PyPI or
Debian's python3-websockets. See cli.py for a program with it:

    device = Device("ws://127.0.0.1:8080/", print, "state.json")
    device.send("100000000", "hello", receipt=True)
    asyncio.run(device.run())
"""

import asyncio
import json
import math
import os
import random
import secrets
import time

import websockets

FINAL = {1007, 1009, 4400, 4401, 4409}  # coming back would change nothing
PAUSE_MIN_S, PAUSE_MAX_S = 0.5, 30
USEFUL_AFTER_S = 10


class Device:
    """One device. `heard` is called with each frame that tells the program something: the welcome,
    messages, what became of its own, and errors.

    With a `path` the device is the same in every run: token, mailbox, what was seen and what is not
    answered are kept there. A program that dies within `heard` hears the same message again. A
    `token` takes the place of one that was kept.
    """

    def __init__(self, url, heard, path=None, token=None, ephemeral=False):
        self.url, self.heard, self.path, self.ephemeral = url, heard, path, ephemeral
        self.state = {"token": None, "mailbox": None, "last_seq": 0, "outbox": {}}
        if path and os.path.exists(path):
            with open(path) as file:
                self.state = json.load(file)
        self.state["token"] = token or self.state["token"]
        self._queue = None  # what is to be written, while there is a welcome
        self._welcome_at = None
        self._come_back_in_s = 0

    @property
    def unanswered(self):
        """How many messages are neither accepted nor rejected yet."""
        return len(self.state["outbox"])

    def send(self, to, body, **more):
        """Sends, now or when there is a connection, until it is answered; gives the id."""
        id = secrets.token_hex(12)
        frame = {"type": "send", "id": id, "to": to, "body": body, **more}
        self.state["outbox"][id] = frame
        self._save()
        self._say(frame)
        return id

    async def run(self):
        """Connects again and again; returns code and reason of a close that is for good."""
        failures = 0
        while True:
            self._welcome_at = None
            try:
                # The library answers pings, and pings a server that is silent for 20 s by itself.
                protocols = ["switchboard.v1.json"]
                async with websockets.connect(self.url, subprotocols=protocols, max_size=None) as ws:
                    await self._session(ws)
                if ws.close_code in FINAL:
                    return ws.close_code, ws.close_reason
            except (OSError, asyncio.TimeoutError, websockets.InvalidHandshake):
                pass  # nobody there, or rejected
            if time.monotonic() > (self._welcome_at or math.inf) + USEFUL_AFTER_S:
                failures = 0
            pause_s = min(PAUSE_MIN_S * 2**failures, PAUSE_MAX_S) * random.uniform(0.5, 1)
            failures += 1
            await asyncio.sleep(self._come_back_in_s + pause_s)
            self._come_back_in_s = 0

    async def _session(self, ws):
        queue = asyncio.Queue()
        kept = {name: self.state[name] for name in ("token", "mailbox", "last_seq")}
        queue.put_nowait({"type": "hello", "ephemeral": self.ephemeral, **kept})
        writer = asyncio.create_task(self._write(ws, queue))
        try:
            async for text in ws:
                self._hear(json.loads(text), queue)
        except websockets.ConnectionClosed:
            pass
        finally:
            self._queue = None
            writer.cancel()

    async def _write(self, ws, queue):
        # Apart from the reader: two sides that write and do not read would wait for each other.
        try:
            while True:
                await ws.send(json.dumps(await queue.get()))
        except websockets.ConnectionClosed:
            pass

    def _say(self, frame):
        if self._queue:
            self._queue.put_nowait(frame)

    def _hear(self, frame, queue):
        state, kind = self.state, frame["type"]
        if kind == "welcome":
            state["token"] = frame.pop("token", state["token"])
            if frame["mailbox"] != state["mailbox"]:
                state.update(mailbox=frame["mailbox"], last_seq=0)
            self._save()
            self._queue, self._welcome_at = queue, time.monotonic()
            for unanswered in state["outbox"].values():
                self._say(unanswered)  # under its old id: it is delivered once
            self.heard(frame)
        elif kind in ("message", "outcome"):
            if frame["seq"] > state["last_seq"]:  # else it was seen on an earlier connection
                self.heard(frame)
                state["last_seq"] = frame["seq"]
                self._save()
            self._say({"type": "ack", "seq": frame["seq"]})
        elif kind in ("accepted", "rejected"):
            self._answered(frame)
        elif kind == "bye":
            self._come_back_in_s = frame["reconnect_in_ms"] / 1000
        elif kind == "error":
            self.heard(frame)  # a bug in this program

    def _answered(self, frame):
        if frame["id"] not in self.state["outbox"]:
            return
        if "retry_after_ms" in frame:
            pause_s = frame["retry_after_ms"] / 1000
            asyncio.get_running_loop().call_later(pause_s, self._retry, frame["id"])
            return
        del self.state["outbox"][frame["id"]]
        self._save()
        self.heard(frame)

    def _retry(self, id):
        if sent := self.state["outbox"].get(id):
            self._say(sent)

    def _save(self):
        if self.path:
            new = self.path + ".new"
            # For this user alone: the token proves who the device is.
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(self.state, file)
            os.replace(new, self.path)
