"""A WebSocket server for tests that serves "S channel" and "P channel payload" and has a fault:
`lose` leaves out every tenth message, `end` ends after some, `start` does not start, `none` has none.

usage: faulty_server.py PORT HOST FAULT
"""

import asyncio
import base64
import hashlib
import os
import sys

CHANNELS = {}
PUBLISHED = 0
# RFC 6455, section 1.3.
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload):
    """A text frame of a server. Payloads here are shorter than 64 KiB."""
    length = (
        bytes([len(payload)])
        if len(payload) < 126
        else bytes([126]) + len(payload).to_bytes(2, "big")
    )
    return b"\x81" + length + payload


async def message(reader):
    """The payload of the client's next frame, or None after its close."""
    first, second = await reader.readexactly(2)
    length = second & 127
    if length >= 126:
        length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
    mask = await reader.readexactly(4)
    payload = await reader.readexactly(length)
    return (
        None if first & 15 == 8 else bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))
    )


def publish(channel, payload, fault):
    global PUBLISHED
    PUBLISHED += 1
    if fault == "end" and PUBLISHED == 30:
        print("I cannot go on", flush=True)
        # Whatever else is under way.
        os._exit(3)
    if fault == "lose" and PUBLISHED % 10 == 0:
        return
    for subscriber in CHANNELS.get(channel, ()):
        subscriber.write(frame(payload))


async def serve(reader, writer, fault):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(
            line.split(b":", 1)[1].strip()
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        )
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        while (text := await message(reader)) is not None:
            what, channel, *payload = text.split(b" ", 2)
            if what == b"S":
                CHANNELS.setdefault(channel, set()).add(writer)
            else:
                publish(channel, payload[0], fault)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        for subscribers in CHANNELS.values():
            subscribers.discard(writer)
        writer.close()


async def main():
    port, host, fault = sys.argv[1:]
    if fault == "start":
        sys.exit(4)
    server = await asyncio.start_server(
        lambda reader, writer: serve(reader, writer, fault), host, int(port)
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[3] == "start":
        print("I cannot begin", flush=True)
    asyncio.run(main())
