"""An issuer's keys: while they can't be fetched no vendor must be locked out, and no stranger must cause fetches."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from streamer.accounts.jwks import MAX_BYTES, IssuerKeys, usable_keys
from streamer.accounts.tokens import Authenticator
from streamer.errors import ProtocolError, Unavailable
from streamer.supervisor import end
from tests.support.apps import eventually
from tests.support.issuer import EC, RSA, WEAK, Issuer, public, signed

Start = Callable[..., IssuerKeys]


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer(EC["e1"]) as issuer:
        yield issuer


@pytest.fixture
async def start(issuer: Issuer) -> AsyncIterator[Start]:
    """Starts the keys of the issuer."""
    async with AsyncExitStack() as stack:

        def start(**options: Any) -> IssuerKeys:
            keys = IssuerKeys(issuer.url, **options)
            running = asyncio.create_task(keys.run())
            stack.push_async_callback(end, [running])
            return keys

        yield start


async def let_in(keys: IssuerKeys, token: str) -> bool:
    """Whether a token counts."""
    try:
        return (await Authenticator([], keys).check(token)).clerk_id == "user_1"
    except ProtocolError as wrong:
        if "no key" not in wrong.message:
            raise
        return False


async def test_one_fetch_for_a_crowd(issuer: Issuer, start: Start) -> None:
    """A thousand apps that come back at once ask the issuer once."""
    keys = start()
    assert all(await asyncio.gather(*(let_in(keys, signed(EC["e1"])) for _ in range(50))))
    assert issuer.asked == 1


async def test_a_new_key_is_taken_at_once(issuer: Issuer, start: Start) -> None:
    """After a key change of the issuer tokens are accepted before the next regular fetch."""
    keys = start(min_interval=0.05)
    assert await let_in(keys, signed(EC["e1"]))
    issuer.answer = public(EC["e2"], RSA["r1"])
    await asyncio.sleep(0.1)
    assert await let_in(keys, signed(EC["e2"]))
    assert await let_in(keys, signed(RSA["r1"]))
    assert not await let_in(keys, signed(EC["e1"])), "a withdrawn key counts no more"


async def test_a_withdrawn_key_ends_by_itself(issuer: Issuer, start: Start) -> None:
    """A stolen key must be refused after the next regular fetch, though no token of another key comes."""
    keys = start(refresh=0.2, min_interval=0.05)
    assert await let_in(keys, signed(EC["e1"]))
    issuer.answer = public(EC["e2"])

    async def out() -> bool:
        return not await let_in(keys, signed(EC["e1"]))

    await eventually(out, "the end of the withdrawn key")


async def test_made_up_key_ids_cost_the_issuer_nothing(issuer: Issuer, start: Start) -> None:
    """A stranger can't have the issuer asked more often than every few seconds, nor make others wait."""
    keys = start(min_interval=60.0)
    assert await let_in(keys, signed(EC["e1"]))
    async with asyncio.timeout(5):
        for number in range(100):
            assert not await let_in(keys, signed(EC["e2"], kid=f"made-up-{number}"))
    assert await let_in(keys, signed(EC["e1"]))
    assert issuer.asked == 1


async def test_old_keys_outlive_the_issuers_absence(issuer: Issuer, start: Start) -> None:
    """While the issuer is away, known keys still verify tokens; a token of an unknown key is not called bad."""
    keys = start(refresh=0.1, min_interval=0.05)
    assert await let_in(keys, signed(EC["e1"]))
    await issuer.down()
    await eventually(lambda: keys.cause is not None, "a failed fetch")
    assert keys.missing is None
    for _ in range(3):
        assert await let_in(keys, signed(EC["e1"]))
        with pytest.raises(Unavailable, match="try again"):
            await let_in(keys, signed(EC["e2"]))
        await asyncio.sleep(0.06)
    issuer.answer = public(EC["e1"], EC["e2"])
    await issuer.up()
    await eventually(lambda: keys.cause is None, "a fetch that succeeds")
    assert await let_in(keys, signed(EC["e2"]))


@pytest.mark.parametrize(
    ("status", "answer", "cause"),
    [
        (200, b"<html>", "unexpected character"),
        (200, b"", "Input is a zero-length"),
        (200, b"[]", "no JWKS"),
        (200, {"keys": {}}, "no JWKS"),
        (200, {"keys": []}, "no key for"),
        (200, public(WEAK), "no key for"),
        (200, {"keys": [7, None, {}, {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}, {"kty": "EC"}]}, "no key for"),
        (200, {"keys": [{**public(EC["e1"])["keys"][0], "use": "enc"}]}, "no key for"),
        (200, b" " * (MAX_BYTES + 1), "more than"),
        (500, {}, "it answers 500"),
        (302, {}, "it answers 302"),
    ],
)
async def test_an_issuer_that_does_not_answer_well(
    issuer: Issuer, start: Start, status: int, answer: Any, cause: str
) -> None:
    """An invalid key set replaces nothing, and no good token is called bad."""
    good = issuer.answer
    issuer.status, issuer.answer = status, answer
    keys = start(refresh=0.1, min_interval=0.05)
    with pytest.raises(Unavailable, match="try again") as away:
        await let_in(keys, signed(EC["e1"]))
    assert cause in str(away.value)
    issuer.status, issuer.answer = 200, good
    await eventually(lambda: keys.cause is None, "a fetch that succeeds")
    assert await let_in(keys, signed(EC["e1"]))
    issuer.status, issuer.answer = status, answer
    await eventually(lambda: keys.cause is not None, "a fetch that fails")
    assert await let_in(keys, signed(EC["e1"]))


async def test_an_issuer_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app is asked to try again within a bounded time."""
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("streamer.accounts.jwks.TIMEOUT", 0.2)
    keys = IssuerKeys(f"http://127.0.0.1:{silent.getsockname()[1]}/", min_interval=0.05)
    running = asyncio.create_task(keys.run())
    try:
        with pytest.raises(Unavailable, match="try again"):
            await let_in(keys, signed(EC["e1"]))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        silent.close()


async def test_the_issuer_is_down_from_the_start() -> None:
    """An app gets a reason to retry, also when the refreshing task does not run."""
    keys = IssuerKeys("http://127.0.0.1:9/", min_interval=0.05)
    with pytest.raises(Unavailable, match="try again"):
        await let_in(keys, signed(EC["e1"]))


def test_which_keys_of_a_set_are_used() -> None:
    """Other keys beside the ones for signing do no harm, and the first of an id is the one."""
    mixed = [*public(WEAK, RSA["r1"], EC["e1"])["keys"], {**public(EC["e2"])["keys"][0], "kid": "e1"}, {"kty": "x"}]
    keys = usable_keys({"keys": mixed})
    assert [(kid, key.algorithm_name) for kid, key in keys.items()] == [("r1", "RS256"), ("e1", "ES256")]
    bare = {name: value for name, value in public(EC["e1"])["keys"][0].items() if name not in ("use", "alg", "kid")}
    assert [key.algorithm_name for key in usable_keys({"keys": [bare]}).values()] == ["ES256"]
    assert len(usable_keys({"keys": [{**bare, "kid": str(n)} for n in range(500)]})) == 100
