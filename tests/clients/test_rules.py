"""The tables of clients/conformance that need no server, tested with the Python client; the JavaScript client's
tests read the same files."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from tests.support.paths import ROOT
from venta_client import Hello, MemoryQueue, VendorClient, reconnect
from venta_client.token import expiry, renew_in

TABLES = ROOT / "clients" / "conformance"


def cases(table: str, name: str) -> list[Any]:
    """Returns the cases of a table."""
    found: list[Any] = orjson.loads((TABLES / f"{table}.json").read_bytes())[name]
    assert found
    return found


@pytest.mark.parametrize("case", cases("reconnect", "rules"), ids=lambda case: case["code"])
def test_close_codes(case: dict[str, Any]) -> None:
    """A client must not reconnect after a final close, and must reconnect after all others."""
    assert reconnect.rule(case["code"]) == case["reconnect"]


@pytest.mark.parametrize("case", cases("reconnect", "statuses"), ids=lambda case: case["status"])
def test_statuses_mean_what_the_close_codes_mean(case: dict[str, Any]) -> None:
    """A refused handshake must lead a client to the same decision as the close code for the same reason."""
    assert reconnect.code_of_status(case["status"]) == case["code"]


@pytest.mark.parametrize("case", cases("reconnect", "waits"), ids=str)
def test_waits(case: dict[str, Any]) -> None:
    """Thousands of clients that lost the same server must not reconnect at the same time, or too often."""
    wait = reconnect.wait(
        case["code"],
        case["failures"],
        case["chance"],
        min_delay=case.get("minDelay", reconnect.MIN_DELAY),
        max_delay=case.get("maxDelay", reconnect.MAX_DELAY),
        reconnect_after=case.get("reconnectAfterMs"),
        retry_after=case.get("retryAfterMs", 0),
    )
    assert wait == pytest.approx(case["wait"])


@pytest.mark.parametrize("case", cases("clock", "corrections"), ids=lambda case: case["add"])
async def test_clock_corrections(case: dict[str, Any]) -> None:
    """Otherwise a phone hours ahead would have all pings rejected, and one hours behind would never be live."""
    client = VendorClient("http://a", queue=MemoryQueue(), clock=lambda: case["clock"] / 1000)
    at = await client.ping(1, 2, timestamp=case["clock"])
    client.took({"type": "hello", **Hello(vendorId="v", time=case["time"], durable=None, maxBatch=500)})
    sent = client._next()
    assert sent is not None
    assert orjson.loads(sent)["timestamp"] == at + case["add"]


@pytest.mark.parametrize("case", cases("tokens", "tokens"), ids=lambda case: case["claims"])
def test_tokens(case: dict[str, Any]) -> None:
    """A connection whose token is not replaced in time would be closed during work."""
    claims = base64.urlsafe_b64encode(case["claims"].encode()).decode().rstrip("=")
    expires, renew = expiry(f"e30.{claims}.x"), renew_in(f"e30.{claims}.x", case["now"] / 1000)
    assert (expires and expires * 1000) == case["expires"]
    assert (renew and renew * 1000) == (None if case["renewIn"] is None else pytest.approx(case["renewIn"]))


@pytest.mark.parametrize("other", ["", "a", "a.b", "a.%.c"])
def test_what_is_no_token_never_expires(other: str) -> None:
    """A client can't read an opaque token, so it must not consider it expired."""
    assert expiry(other) is None
