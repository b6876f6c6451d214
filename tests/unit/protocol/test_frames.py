"""WebSocket frames: a reader that is wrong here loses pings, or lets one client stop the server.

The cases of the Autobahn test suite are rebuilt from RFC 6455 in its order and under its numbers.
"""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import FrameError
from streamer.protocol.deflate import Deflater
from streamer.protocol.frames import (
    MIN_DEFLATED,
    PING_FRAME,
    DeflateFraming,
    FrameReader,
    accept_key,
    close_frame,
    encode_frame,
    parse_close,
    pong_frame,
    text_frame,
)
from tests.support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, compressed, frame

MAX = 1 << 20
Frames = list[tuple[int, bytes]]


def read(data: bytes, *, sizes: list[int] | None = None, deflate: bool = False, limit: int = MAX) -> Frames:
    """All frames of some bytes, fed in pieces of these sizes; a violation is the last one: (its close code, b"")."""
    reader, frames, at = FrameReader(limit, deflate=deflate), Frames(), 0
    sizes = sizes or [len(data) or 1]
    turn = 0
    while at < len(data):
        size = max(1, sizes[turn % len(sizes)])
        reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
        try:
            while (got := reader.next()) is not None:
                frames.append(got)
        except FrameError as broken:
            return [*frames, (int(broken.close), b"")]
    return frames


def messages(frames: Frames) -> Frames:
    """The same without the fragments that complete nothing."""
    return [got for got in frames if got[0] != CONTINUATION]


# Autobahn

CODES = {1002, 1007, 1009}
UTF8 = "Hello-µ@ßöäüàá-UTF-8!!".encode()
BROKEN_UTF8 = bytes.fromhex("cebae1bdb9cf83cebcceb5f4908080656469746564")
FRAGMENTED = b"fragment1fragment2"
VALID = """ceba cebae1bdb9cf83cebcceb5 00 c280 e0a080 f0908080 7f dfbf efbfbf f48fbfbf ed9fbf ee8080 efbfbd efbfbe"""
INVALID = """ce cebae1 f888808080 fc8480808080 f7bfbfbf f4908080 80 bf 8080 c0 fe ff fefeffff c0af e080af f08080af c1bf
e09fbf f08fbfbf eda080 edbfbf eda080edb080"""

AUTOBAHN: list[tuple[str, bytes, Frames]] = [
    *(
        (f"1.1.{n}: text of {size}", frame(b"*" * size), [(TEXT, b"*" * size)])
        for n, size in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1)
    ),
    *(
        (f"1.2.{n}: binary of {size}", frame(b"\xfe" * size, BINARY), [(BINARY, b"\xfe" * size)])
        for n, size in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1)
    ),
    ("2.1: ping without payload", frame(b"", PING), [(PING, b"")]),
    ("2.2: ping with text", frame(b"Hello, world!", PING), [(PING, b"Hello, world!")]),
    (
        "2.3: ping with binary",
        frame(b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", PING),
        [(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")],
    ),
    ("2.4: ping of 125", frame(b"\xfe" * 125, PING), [(PING, b"\xfe" * 125)]),
    ("2.5: ping of 126", frame(b"\xfe" * 126, PING), [(1002, b"")]),
    ("2.7: unsolicited pong", frame(b"", PONG), [(PONG, b"")]),
    ("2.9: pong, then ping", frame(b"x", PONG) + frame(b"y", PING), [(PONG, b"x"), (PING, b"y")]),
    ("2.10: ten pings", b"".join(frame(b"%d" % n, PING) for n in range(10)), [(PING, b"%d" % n) for n in range(10)]),
    ("3.1: RSV 1", frame(b"x", rsv=1), [(1002, b"")]),
    ("3.2: text, then RSV 2", frame(b"x") + frame(b"x", rsv=2), [(TEXT, b"x"), (1002, b"")]),
    ("3.3: text, then RSV 3", frame(b"x") + frame(b"x", rsv=3), [(TEXT, b"x"), (1002, b"")]),
    ("3.4: RSV 4 not negotiated", frame(b"x", rsv=4), [(1002, b"")]),
    ("3.5: binary with RSV 5", frame(b"x", BINARY, rsv=5), [(1002, b"")]),
    ("3.6: ping with RSV 6", frame(b"x", PING, rsv=6), [(1002, b"")]),
    ("3.7: close with RSV 7", frame(b"", CLOSE, rsv=7), [(1002, b"")]),
    *((f"4.1: opcode {code}", frame(b"x", code), [(1002, b"")]) for code in range(3, 8)),
    *((f"4.2: opcode {code}", frame(b"x", code), [(1002, b"")]) for code in range(11, 16)),
    ("5.1: fragmented ping", frame(b"a", PING, fin=False) + frame(b"b", CONTINUATION), [(1002, b"")]),
    ("5.2: fragmented pong", frame(b"a", PONG, fin=False) + frame(b"b", CONTINUATION), [(1002, b"")]),
    ("5.3: two fragments", frame(b"fragment1", fin=False) + frame(b"fragment2", CONTINUATION), [(TEXT, FRAGMENTED)]),
    (
        "5.6: ping between fragments",
        frame(b"fragment1", fin=False) + frame(b"ping", PING) + frame(b"fragment2", CONTINUATION),
        [(PING, b"ping"), (TEXT, FRAGMENTED)],
    ),
    ("5.9: continuation of nothing", frame(b"x", CONTINUATION) + frame(b"x"), [(1002, b"")]),
    ("5.12: unfinished continuation of nothing", frame(b"x", CONTINUATION, fin=False), [(1002, b"")]),
    (
        "5.15: a continuation after the end",
        frame(b"fragment1", fin=False) + frame(b"fragment2", CONTINUATION) + frame(b"x", CONTINUATION, fin=False),
        [(TEXT, FRAGMENTED), (1002, b"")],
    ),
    ("5.18: a text within a text", frame(b"a", fin=False) + frame(b"b"), [(1002, b"")]),
    (
        "5.19: pings between five fragments",
        b"".join(
            (
                frame(b"1", fin=False),
                frame(b"2", CONTINUATION, fin=False),
                frame(b"p", PING),
                frame(b"3", CONTINUATION, fin=False),
                frame(b"4", CONTINUATION, fin=False),
                frame(b"q", PING),
                frame(b"5", CONTINUATION),
            )
        ),
        [(PING, b"p"), (PING, b"q"), (TEXT, b"12345")],
    ),
    ("6.1.1: empty text", frame(b""), [(TEXT, b"")]),
    (
        "6.1.2: empty fragments",
        frame(b"", fin=False) + frame(b"", CONTINUATION, fin=False) + frame(b"", CONTINUATION),
        [(TEXT, b"")],
    ),
    ("6.2.1: UTF-8", frame(UTF8), [(TEXT, UTF8)]),
    (
        "6.2.2: UTF-8 in two fragments",
        frame(UTF8[:12], fin=False) + frame(UTF8[12:], CONTINUATION),
        [(TEXT, UTF8)],
    ),
    (
        "6.2.3: UTF-8 byte by byte",
        frame(UTF8[:1], fin=False)
        + b"".join(frame(bytes((byte,)), CONTINUATION, fin=False) for byte in UTF8[1:])
        + frame(b"", CONTINUATION),
        [(TEXT, UTF8)],
    ),
    ("6.3.1: no UTF-8", frame(BROKEN_UTF8), [(1007, b"")]),
    (
        "6.4.1: fails on the fragment that breaks it, not at the end",
        frame(BROKEN_UTF8[:11], fin=False) + frame(BROKEN_UTF8[11:15], CONTINUATION, fin=False),
        [(1007, b"")],
    ),
    *((f"6.6 ff.: {text}", frame(bytes.fromhex(text)), [(TEXT, bytes.fromhex(text))]) for text in VALID.split()),
    *((f"6.6 ff.: {text}", frame(bytes.fromhex(text)), [(1007, b"")]) for text in INVALID.split()),
    ("7.3.1: empty close", frame(b"", CLOSE), [(CLOSE, b"")]),
    ("7.3.6: close of 126", frame(b"\x03\xe8" + b"*" * 124, CLOSE), [(1002, b"")]),
    ("unmasked", frame(b"x", masked=False), [(1002, b"")]),
    ("a length of 2^63", b"\x81\xff" + (1 << 63).to_bytes(8) + b"mask", [(1002, b"")]),
    ("a length of 2^62", b"\x81\xff" + (1 << 62).to_bytes(8) + b"mask", [(1009, b"")]),
]


@pytest.mark.parametrize(("data", "expected"), [case[1:] for case in AUTOBAHN], ids=[case[0] for case in AUTOBAHN])
def test_autobahn(data: bytes, expected: Frames) -> None:
    """Each case, whole, in two pieces, and byte by byte."""
    assert messages(read(data)) == expected
    assert messages(read(data, sizes=[len(data) // 2 + 1])) == expected
    if len(data) < 1000:
        assert messages(read(data, sizes=[1])) == expected


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
def test_close_codes(code: int) -> None:
    """7.7: every code that a client may send is understood, with and without a reason."""
    assert parse_close(code.to_bytes(2)) == code
    assert parse_close(code.to_bytes(2) + UTF8) == code
    assert parse_close(b"") is None


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535])
def test_close_codes_that_are_none(code: int) -> None:
    """7.9: a code that must not be sent fails the connection."""
    with pytest.raises(FrameError) as broken:
        parse_close(code.to_bytes(2))
    assert broken.value.close == 1002


def test_close_payloads_that_are_broken() -> None:
    """7.3.2, 7.5.1: a code of one byte, and a reason that is no UTF-8."""
    for payload, code in ((b"\x03", 1002), (b"\x03\xe8" + BROKEN_UTF8, 1007)):
        with pytest.raises(FrameError) as broken:
            parse_close(payload)
        assert broken.value.close == code


@pytest.mark.parametrize("fragment", [64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1 << 20])
def test_large_messages_in_fragments(fragment: int) -> None:
    """9.3 to 9.6: a megabyte in fragments of any size, and fed in small pieces."""
    text = b"*" * MAX
    data = b"".join(
        frame(text[at : at + fragment], TEXT if at == 0 else CONTINUATION, fin=at + fragment >= MAX, mask=b"mask")
        for at in range(0, MAX, fragment)
    )
    assert messages(read(data, sizes=[5000])) == [(TEXT, text)]


# permessage-deflate: 12 and 13


@pytest.mark.parametrize("size", [0, 16, 64, 256, 1024, 4096, 8192, 16_384, 32_768, 65_536, 131_072])
@pytest.mark.parametrize("fragment", [None, 100])
def test_compressed_messages(size: int, fragment: int | None) -> None:
    """12: messages of any size, whole and in fragments; plain ones may come in between."""
    text = (b'{"lat":52.2297,"long":21.0122}' * (size // 30 + 1))[:size]
    packed = compressed(text)
    step = fragment or len(packed)
    data = frame(b"plain") + b"".join(
        frame(
            packed[at : at + step],
            TEXT if at == 0 else CONTINUATION,
            fin=at + step >= len(packed),
            rsv=4 if at == 0 else 0,
        )
        for at in range(0, len(packed), step)
    )
    assert messages(read(data, deflate=True)) == [(TEXT, b"plain"), (TEXT, text)]


BOMB = compressed(b" " * (64 << 20), 9)
COMPRESSED: list[tuple[str, bytes, int]] = [
    ("a bomb", frame(BOMB[:60_000], BINARY, rsv=4), 1009),
    ("no deflate stream", frame(b"\xff" * 20, rsv=4), 1007),
    ("no UTF-8 inside", frame(compressed(b"\xff\xfe"), rsv=4), 1007),
    (
        "no UTF-8 inside, in fragments",
        frame(compressed(b"\xff\xfe")[:2], fin=False, rsv=4) + frame(compressed(b"\xff\xfe")[2:], CONTINUATION),
        1007,
    ),
    ("a compressed ping", frame(compressed(b"x"), PING, rsv=4), 1002),
    ("a compressed continuation", frame(b"a", fin=False) + frame(b"b", CONTINUATION, rsv=4), 1002),
    ("other reserved bits", frame(compressed(b"x"), rsv=6), 1002),
]


@pytest.mark.parametrize(("data", "code"), [case[1:] for case in COMPRESSED], ids=[case[0] for case in COMPRESSED])
def test_compressed_messages_that_are_broken(data: bytes, code: int) -> None:
    """What can't be inflated, or is too large inflated, fails the connection."""
    assert messages(read(data, deflate=True)) == [(code, b"")]


def test_a_final_deflate_block() -> None:
    """A client may end a message with a final block (RFC 7692, 7.2.3.4)."""
    stream = zlib.compressobj(wbits=-15)
    packed = stream.compress(b"hello") + stream.flush(zlib.Z_FINISH) + b"\x00"
    assert read(frame(packed, rsv=4), deflate=True) == [(TEXT, b"hello")]


# properties

frames_of_clients = st.lists(
    st.one_of(
        st.tuples(st.just(TEXT), st.text(max_size=300).map(str.encode)),
        st.tuples(st.just(BINARY), st.binary(max_size=300)),
        st.tuples(st.sampled_from((PING, PONG)), st.binary(max_size=125)),
    ),
    max_size=8,
)
masks = st.binary(min_size=4, max_size=4)
pieces = st.lists(st.integers(1, 400), min_size=1, max_size=10)


@given(frames_of_clients, masks, pieces, st.data())
def test_how_bytes_are_cut_does_not_matter(sent: Frames, mask: bytes, sizes: list[int], data: st.DataObject) -> None:
    """The network cuts anywhere and clients fragment as they like; the messages are the same."""
    raw = b""
    for opcode, payload in sent:
        if opcode in (TEXT, BINARY) and data.draw(st.booleans()):
            cut = data.draw(st.integers(0, len(payload)))
            raw += frame(payload[:cut], opcode, fin=False, mask=mask)
            raw += frame(b"", PONG, mask=mask) if data.draw(st.booleans()) else b""
            raw += frame(payload[cut:], CONTINUATION, mask=mask)
        else:
            raw += frame(payload, opcode, mask=mask)
    got = messages(read(raw, sizes=sizes))
    assert [one for one in got if one != (PONG, b"")] == [one for one in sent if one != (PONG, b"")]


@given(st.lists(st.binary(max_size=64), max_size=20), st.booleans())
def test_any_bytes(chunks: list[bytes], deflate: bool) -> None:
    """Whatever a stranger sends is frames or a violation with a code, and what is kept is bounded."""
    reader = FrameReader(200, deflate=deflate)
    code = None
    for chunk in chunks:
        reader.feed(chunk)
        try:
            while (got := reader.next()) is not None:
                assert len(got[1]) <= 200
        except FrameError as broken:
            code = broken.close
            break
        assert reader.buffered <= 200 + 200 + 14
    assert code in {None, *CODES}


def test_a_message_as_large_as_allowed() -> None:
    """The limit counts the message, whole or in fragments, and not the frames around it."""
    for data in (
        frame(b"x" * 200),
        frame(b"x" * 100, fin=False) + frame(b"y" * 25, PING) + frame(b"x" * 100, CONTINUATION),
    ):
        assert messages(read(data, limit=200))[-1] == (TEXT, b"x" * 200)
    for data in (frame(b"x" * 201), frame(b"x" * 100, fin=False) + frame(b"x" * 101, CONTINUATION)):
        assert messages(read(data, limit=200)) == [(1009, b"")]


def test_a_large_message_is_refused_before_it_is_received() -> None:
    """The head is enough: nothing of what is too large is gathered."""
    assert read(frame(b"x" * 300)[:8], limit=200) == [(1009, b"")]


# what the server sends


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_text_frame(size: int) -> None:
    """Each length of message is one final, unmasked text frame with its length in the shortest form."""
    payload = b"x" * size
    encoded = text_frame(payload)
    assert encoded == encode_frame(payload)
    assert encoded[0] == 0x81
    length, start = encoded[1], 2
    if length == 126:
        length, start = int.from_bytes(encoded[2:4]), 4
        assert length >= 126
    elif length == 127:
        length, start = int.from_bytes(encoded[2:10]), 10
        assert length >= 65_536
    assert length == size
    assert encoded[start:] == payload


def test_control_frames() -> None:
    """Heartbeats, answers to pings, and the end; a reason that is too long is cut between two characters."""
    assert list(PING_FRAME) == [0x89, 0]
    assert pong_frame(b"x" * 125) == b"\x8a\x7d" + b"x" * 125
    assert close_frame(4401, "expired") == b"\x88\x09\x11\x31expired"
    assert close_frame(4401, "\ud800") == b"\x88\x03\x11\x31?", "a reason may quote what a client sent"
    long = close_frame(4401, "é" * 100)
    assert long[1] == len(long) - 2 == 124
    assert parse_close(long[2:]) == 4401


@given(st.lists(st.text(max_size=2000).map(str.encode), max_size=6))
def test_deflated_frames(texts: list[bytes]) -> None:
    """Each message is inflated by itself, whatever was compressed before it: bytes compressed once serve many."""
    framing = DeflateFraming(Deflater())
    for text in texts:
        encoded = framing.text_frame(text)
        if len(text) < MIN_DEFLATED:
            assert encoded == text_frame(text)
            continue
        assert encoded[0] == 0xC1
        start = {126: 4, 127: 10}.get(encoded[1], 2)
        inflated = zlib.decompressobj(-15).decompress(encoded[start:] + b"\x00\x00\xff\xff")
        assert inflated == text


def test_accept_key() -> None:
    """The RFC's own example; a key that is none is refused."""
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    for key in ("", "short", "dGhlIHNhbXBsZQ==", "dGhlIHNhbXBsZSBub25jZQ", "dGhl IHNhbXBsZSBub25jZQ==", "é" * 24):
        assert accept_key(key) is None
