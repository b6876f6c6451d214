"""Messages that are nearly right: seeds with some of their tokens changed, as hypothesis strategies."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import strategies as st

TOKEN = re.compile(rb'"[^"]*"|-?\d+(?:\.\d+)?|true|false|null|[\[\]{},:]|[^\[\]{},:"]+')
ODD = (
    *(b"null", b"true", b"-0", b"1e400", b"NaN", b"9" * 20, b"9" * 400, b"-1", b"180", b"-180.0000001", b"1e-320"),
    *(b"90", b"89.99999", b"0", b'""', b'"lat"', b'"long"', b'"type"', b'"pings"', b"[]", b"{}", b"[[[[", b"\xff"),
    *(b"\x00", b'"\\ud800"', b'"\\u0000"', b"\n", b",", b":", b"}", b"]", b"&", b"=", b"%00", b"+", b"T", b"Z"),
)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A seed, or two joined, with up to six of its parts replaced, doubled or left out."""
    parts = TOKEN.findall(draw(st.sampled_from(list(seeds))))
    if draw(st.booleans()):
        parts += [b"\n", *TOKEN.findall(draw(st.sampled_from(list(seeds))))]
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(parts) - 1)))
        how = draw(st.integers(0, 3))
        if how == 0:
            parts[at : at + 1] = [draw(st.sampled_from(ODD) | st.binary(max_size=4))]
        elif how == 1:
            parts[at:at] = parts[at : at + draw(st.integers(1, 8))]
        elif how == 2:
            parts[at : at + draw(st.integers(1, 4))] = []
        else:
            parts[at : at + 1] = [repr(draw(st.floats() | st.integers(-(2**70), 2**70))).encode()]
    return b"".join(parts)
