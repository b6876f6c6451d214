"""The only use of an undocumented part of redis-py: its connection's stream writer.

The public `disconnect()` flushes buffered data and waits, but a write that arrives after its timeout may be outdated.
`tests/integration/broker/test_redis_compat.py` fails when redis-py changes here.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from redis.asyncio import Connection


def reset(connection: Connection) -> None:
    """Closes a connection immediately by a TCP reset, so that unsent data is never delivered."""
    writer = connection._writer
    if writer is not None:
        raw = writer.get_extra_info("socket")
        if raw is not None:  # None once a TLS connection is lost
            with suppress(OSError):
                # Without a linger time of 0, the kernel would still send its buffer.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    connection._close()  # type: ignore[no-untyped-call]  # the only close that does not wait
