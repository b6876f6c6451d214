"""A WebSocket client's frames, valid by the RFC unless a test changes them."""

from __future__ import annotations

import os
import zlib

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(
    payload: bytes = b"",
    opcode: int = TEXT,
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    mask: bytes | None = None,
) -> bytes:
    """Returns one frame of a client."""
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,))
    size, mask_bit = len(payload), 0x80 if masked else 0
    if size < 126:
        head += bytes((mask_bit | size,))
    elif size < 1 << 16:
        head += bytes((mask_bit | 126,)) + size.to_bytes(2)
    else:
        head += bytes((mask_bit | 127,)) + size.to_bytes(8)
    if not masked:
        return head + payload
    mask = mask or os.urandom(4)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def compressed(payload: bytes, level: int = 6) -> bytes:
    """Returns a message compressed by permessage-deflate."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
