"""WebSocket frames (RFC 6455), the server's side. Pure: bytes in, messages and control frames out."""

from __future__ import annotations

import codecs
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from hashlib import sha1

from streamer.errors import CloseCode, FrameError
from streamer.protocol.deflate import Deflater, inflated

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
"""Opcodes (RFC 6455, 5.2)."""
FINAL, COMPRESSED, RESERVED = 0x80, 0x40, 0x70
"""Bits of a frame's first byte."""
MAX_CONTROL = 125
"""Largest payload of a control frame, bytes."""
MIN_DEFLATED = 256
"""Messages of fewer bytes are not compressed: they would hardly be smaller."""
PING_FRAME = b"\x89\x00"
_ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NO_MASK = bytes(4)


class FrameReader:
    """Splits what a client sends into messages and control frames.

    `feed` takes bytes as they arrive, `next` returns one frame at a time, so that the caller decides how much is
    handled at once. Other bytes stay in the buffer.
    """

    __slots__ = ("_at", "_buffer", "_deflate", "_first", "_max_message", "_parts", "_utf8")

    def __init__(self, max_message: int, *, deflate: bool = False) -> None:
        self._max_message = max_message
        self._deflate = deflate
        self._buffer: bytes | bytearray = b""
        self._at = 0
        self._first = 0
        """First byte of the fragmented message in progress; 0 when there is none."""
        self._parts: bytearray | None = None
        self._utf8: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes) -> None:
        """Append bytes received."""
        if not self._buffer:
            self._buffer = data
            return
        rest = self._buffer
        if isinstance(rest, bytes):
            rest = bytearray(rest[self._at :])
        else:
            del rest[: self._at]
        rest += data
        self._buffer, self._at = rest, 0

    @property
    def buffered(self) -> int:
        """Bytes received and not yet returned by `next`, fragments of an unfinished message included."""
        return len(self._buffer) - self._at + len(self._parts or b"")

    def next(self) -> tuple[int, bytes] | None:
        """Return the next frame as (opcode, payload), or None when more bytes are needed.

        TEXT and BINARY carry a whole message, unmasked and inflated. CONTINUATION reports a fragment of a message that
        is not complete yet: its payload is the fragment, kept by the reader. CLOSE, PING and PONG carry their payload.

        Raises:
            FrameError: the bytes break the protocol; the reader can't be used any more.
        """
        buffer, at = self._buffer, self._at
        size = len(buffer) - at
        if size < 2:
            return None
        first, second = buffer[at], buffer[at + 1]
        length, start = second & 0x7F, at + 6
        if first & RESERVED or first & 0x0F > BINARY or self._first or not second & 0x80:
            self._check(first, second)
        elif first & 0x0F == CONTINUATION:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "a continuation frame without a message to continue")
        if length > 125:
            wide = 2 if length == 126 else 8
            if size < 2 + wide:
                return None
            length, start = int.from_bytes(buffer[at + 2 : at + 2 + wide]), start + wide
            if length >> 63:
                raise FrameError(CloseCode.PROTOCOL_ERROR, "the highest bit of a frame's length is set")
        if (
            (length > 125 or self._first)
            and first & 0x0F < CLOSE
            and length + len(self._parts or b"") > self._max_message
        ):
            raise FrameError(CloseCode.TOO_BIG, f"a message is larger than {self._max_message} bytes")
        end = start + length
        if len(buffer) < end:
            return None
        payload = unmasked(buffer[start:end], buffer[start - 4 : start])
        if end == len(buffer):
            self._buffer, self._at = b"", 0
        else:
            self._at = end
        opcode = first & 0x0F
        if opcode >= CLOSE:
            return opcode, payload
        if self._first or not first & FINAL:
            return self._fragment(first, payload)
        if first & COMPRESSED:
            payload = inflated(payload, self._max_message)
        if opcode == TEXT and not payload.isascii():
            _check_utf8(payload)
        return opcode, payload

    def _check(self, first: int, second: int) -> None:
        """Check the rare cases of a frame's header."""
        opcode = first & 0x0F
        if not second & 0x80:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "a frame of a client is not masked")
        reserved = first & RESERVED
        if reserved and not (reserved == COMPRESSED and self._deflate and opcode in (TEXT, BINARY)):
            raise FrameError(CloseCode.PROTOCOL_ERROR, f"reserved bits {reserved >> 4:03b} are set and not negotiated")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise FrameError(CloseCode.PROTOCOL_ERROR, f"opcode {opcode} is not defined")
            if not first & FINAL:
                raise FrameError(CloseCode.PROTOCOL_ERROR, "a control frame is fragmented")
            if second & 0x7F > MAX_CONTROL:
                raise FrameError(CloseCode.PROTOCOL_ERROR, f"a control frame is larger than {MAX_CONTROL} bytes")
        elif opcode > BINARY:
            raise FrameError(CloseCode.PROTOCOL_ERROR, f"opcode {opcode} is not defined")
        elif self._first and opcode != CONTINUATION:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "a new message began before the last one was complete")
        elif not self._first and opcode == CONTINUATION:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "a continuation frame without a message to continue")

    def _fragment(self, first: int, payload: bytes) -> tuple[int, bytes]:
        if not self._first:
            self._first, self._parts = first, bytearray()
            if first & 0x0F == TEXT and not first & COMPRESSED:
                self._utf8 = codecs.getincrementaldecoder("utf-8")()
        assert self._parts is not None
        self._parts += payload
        if self._utf8 is not None:
            # Checked per fragment, so that a message with an invalid first fragment is not collected.
            try:
                self._utf8.decode(payload, bool(first & FINAL))
            except UnicodeDecodeError as invalid:
                raise FrameError(CloseCode.INVALID_DATA, f"a text message is not UTF-8: {invalid.reason}") from None
        if not first & FINAL:
            return CONTINUATION, payload
        opcode, message = self._first & 0x0F, bytes(self._parts)
        if self._first & COMPRESSED:
            message = inflated(message, self._max_message)
            if opcode == TEXT:
                _check_utf8(message)
        self._first, self._parts, self._utf8 = 0, None, None
        return opcode, message


def unmasked(payload: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """Return a payload with its mask applied (masking and unmasking are the same)."""
    if mask == _NO_MASK:
        return bytes(payload)
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def parse_close(payload: bytes) -> int | None:
    """Return the code of a Close frame, None when it has none.

    Raises:
        FrameError: the code or the reason is not valid (RFC 6455, 7.4).
    """
    if not payload:
        return None
    code = int.from_bytes(payload[:2])
    valid = (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999
    if len(payload) < 2 or not valid:
        raise FrameError(CloseCode.PROTOCOL_ERROR, f"close code {payload[:2].hex()} (hexadecimal) is not valid")
    _check_utf8(payload[2:])
    return code


def encode_frame(payload: bytes, first: int = FINAL | TEXT) -> bytes:
    """Encode one unmasked frame; `first` is its first byte."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return first.to_bytes() + b"\x7e" + size.to_bytes(2) + payload
    return first.to_bytes() + b"\x7f" + size.to_bytes(8) + payload


def text_frame(payload: bytes) -> bytes:
    """Encode a text message as one frame."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes() + payload
    return encode_frame(payload)


class DeflateFraming:
    """Encodes text messages for clients that negotiated permessage-deflate; small ones stay plain."""

    def __init__(self, deflater: Deflater) -> None:
        self._deflater = deflater

    def text_frame(self, payload: bytes) -> bytes:
        """Encode a text message as one frame."""
        if len(payload) < MIN_DEFLATED:
            return text_frame(payload)
        return encode_frame(self._deflater.deflated(payload), FINAL | COMPRESSED | TEXT)


def close_frame(code: int, reason: str = "") -> bytes:
    """Encode a Close frame; a reason that does not fit is cut, and half of a surrogate pair in it becomes `?`."""
    text = reason.encode(errors="replace")[: MAX_CONTROL - 2].decode(errors="ignore")
    return encode_frame(code.to_bytes(2) + text.encode(), FINAL | CLOSE)


def pong_frame(payload: bytes) -> bytes:
    """Encode the answer to a ping."""
    return encode_frame(payload, FINAL | PONG)


def accept_key(key: str) -> str | None:
    """Return `Sec-WebSocket-Accept` for a client's key; None when the key is not 16 bytes in base64."""
    try:
        if len(b64decode(key, validate=True)) != 16:
            return None
    except (NotBase64, ValueError):
        return None
    return b64encode(sha1(key.encode() + _ACCEPT_SUFFIX, usedforsecurity=False).digest()).decode()


def _check_utf8(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as invalid:
        raise FrameError(CloseCode.INVALID_DATA, f"a text message is not UTF-8: {invalid.reason}") from None
