"""A device on the command line, with device.py:

    python3 cli.py ws://127.0.0.1:8080/ state.json

connects as the device whose token is in state.json, or as a new one. It sends each line of standard
input (a terminal or a pipe) that reads `ID TEXT`, and prints what it is told as lines of JSON. When the
input ends, it ends as soon as all that it sent is answered.
"""

import asyncio
import json
import sys

from device import Device


async def main(url, path):
    told = asyncio.Event()

    def heard(frame):
        print(json.dumps(frame), flush=True)
        told.set()

    device = Device(url, heard, path)
    running = asyncio.create_task(device.run())
    sending = asyncio.create_task(send_lines(device, told))
    await asyncio.wait({running, sending}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        sys.exit("closed for good: %s %s" % running.result())
    await sending
    running.cancel()
    await asyncio.wait({running})  # it closes the connection


async def send_lines(device, told):
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await lines.readline():
        to, _, text = line.decode().rstrip("\n").partition(" ")
        if to:
            device.send(to, text, receipt=True)
    while device.unanswered:
        told.clear()
        await told.wait()


if len(sys.argv) != 3:
    sys.exit("usage: cli.py URL STATE_FILE")
try:
    asyncio.run(main(*sys.argv[1:]))
except KeyboardInterrupt:
    pass
