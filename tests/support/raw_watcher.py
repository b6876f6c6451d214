"""A watcher that shares no code with the load test or the server, to check the load test's percentiles.

`python -m tests.support.raw_watcher PORT TOKEN AREA` (JSON) prints `[[arrived, timestamp], …]` in epoch ms of every
position that moved, when its standard input ends.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator


def frames(connection: socket.socket) -> Iterator[tuple[float, int, bytes]]:
    """Yields (arrived, opcode, payload) of each frame until standard input ends."""
    data, arrived = b"", 0.0
    while True:
        while (found := frame(data)) is not None:
            opcode, payload, data = found
            yield arrived, opcode, payload
        ready, _, _ = select.select([connection, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        some = connection.recv(1 << 16)
        arrived = time.time() * 1000
        if not some:
            raise ConnectionError("the server closed the connection")
        data += some


def frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Returns opcode, payload and the rest; None if the frame is incomplete."""
    if len(data) < 2:
        return None
    size, begin = data[1] & 127, 2
    if size >= 126:
        begin = 4 if size == 126 else 10
        if len(data) < begin:
            return None
        size = int.from_bytes(data[2:begin], "big")
    if len(data) < begin + size:
        return None
    return data[0] & 15, data[begin : begin + size], data[begin + size :]


def send(connection: socket.socket, opcode: int, payload: bytes) -> None:
    """Sends one masked frame of at most 65,535 bytes; its mask is zero."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    connection.sendall(bytes([0x80 | opcode]) + size + bytes(4) + payload)


def main() -> None:
    """The command."""
    port, token, area = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(
        f"GET /v1/watch HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Authorization: Bearer {token}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    if b" 101 " not in head[:16]:
        raise ConnectionError(head.decode())
    send(connection, 1, json.dumps({"type": "watch", "id": "raw", "area": area}).encode())
    found = []
    for arrived, opcode, payload in frames(connection):
        if opcode == 9:
            send(connection, 10, payload)
        elif opcode == 1:
            moved = json.loads(payload).get("moved", [])
            found += [[arrived, fix["timestamp"]] for fix in moved]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
