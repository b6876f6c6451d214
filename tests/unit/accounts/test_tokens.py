"""Tokens: an error here lets a stranger move someone's truck, or locks its owner out."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OctKey

from streamer.accounts.jwks import IssuerKeys
from streamer.accounts.tokens import Authenticator, Identity, Rules, make_token
from streamer.errors import ErrorCode, ProtocolError
from tests.support.issuer import EC, RSA, Issuer, Key, public, signed

T = TypeVar("T")

SECRET = "a secret that is long enough to be one"
LATER = int(time.time()) + 3600


def part(value: Any) -> str:
    """A segment of a JWT, by hand."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(claims: Any, secret: str | bytes = SECRET, **header: Any) -> str:
    """A JWT signed with HMAC-SHA256, made without the library that checks it."""
    signed = f"{part({'alg': 'HS256', 'typ': 'JWT', **header})}.{part(claims)}"
    key = secret if isinstance(secret, bytes) else secret.encode()
    return f"{signed}.{part(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def now(waiting: Coroutine[Any, Any, T]) -> T:
    """The result of a check that needs no request, and so waits for nothing."""
    try:
        waiting.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # it is what the coroutine returns
    raise AssertionError("it waits")


def checked(authenticator: Authenticator, token: str) -> Identity:
    """Who a token speaks for."""
    return now(authenticator.check(token))


def refused(authenticator: Authenticator, bad: str) -> str:
    """Why a token is refused."""
    return now(why_refused(authenticator, bad))


async def why_refused(authenticator: Authenticator, bad: str) -> str:
    """Why a token is refused; never with what it was."""
    with pytest.raises(ProtocolError) as wrong:
        await authenticator.check(bad)
    assert wrong.value.code is ErrorCode.INVALID_TOKEN
    assert wrong.value.message
    assert len(wrong.value.message) < 300
    segments = [segment for segment in (bad, *bad.split(".")) if len(segment) > 8]
    assert not any(segment in wrong.value.message for segment in segments), "a token in a message ends in a log"
    assert wrong.value.__cause__ is None
    return wrong.value.message


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator([SECRET])


def test_tokens_of_others(authenticator: Authenticator) -> None:
    """A valid token of any other library is accepted; audience and similar claims don't matter."""
    assert checked(authenticator, token({"sub": "user_1", "exp": LATER})) == Identity("user_1", LATER)
    claims = {"sub": "user_1", "exp": LATER + 0.5, "aud": "web", "iss": "https://clerk.example", "azp": "x", "sid": "y"}
    assert checked(authenticator, token(claims, kid="k")).clerk_id == "user_1"


def test_a_token_without_an_end(authenticator: Authenticator) -> None:
    """A leaked token must not be valid forever, regardless of its issuer."""
    assert 'missing the "exp" claim' in refused(authenticator, token({"sub": "user_1"}))


@pytest.mark.parametrize("exp", [1_800_000_000_000, 1_800_000_000_000.5, 10**11])
def test_an_end_in_milliseconds(authenticator: Authenticator, exp: float) -> None:
    """`Date.now()` instead of seconds makes a token that lasts 50,000 years: its developer learns why it is refused."""
    assert "is in milliseconds; exp is epoch seconds" in refused(authenticator, token({"sub": "user_1", "exp": exp}))


def test_the_longest_life() -> None:
    """A token that lasts longer than the operator allows is refused, also late in its life when `iat` says its age."""
    authenticator = Authenticator([SECRET], None, Rules(max_lifetime=600, leeway=5))
    now = int(time.time())
    assert checked(authenticator, token({"sub": "u", "iat": now, "exp": now + 600})).clerk_id == "u"
    assert checked(authenticator, token({"sub": "u", "exp": now + 590})).clerk_id == "u"
    for claims in ({"iat": now, "exp": now + 700}, {"iat": now - 650, "exp": now + 50}, {"exp": now + 700}):
        assert "the limit is 600 s (STREAMER_JWT_MAX_LIFETIME)" in refused(authenticator, token({"sub": "u", **claims}))


def test_tokens_of_ours(authenticator: Authenticator) -> None:
    """What development and load tests use passes by the same check."""
    identity = checked(authenticator, make_token(SECRET, "user_2", 60))
    assert identity.clerk_id == "user_2"
    assert identity.expires is not None
    assert make_token(SECRET, "u", 60, now=1_000.0) == make_token(SECRET, "u", 60, now=1_000.9)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "user_1", "exp": LATER - 7200},
        {"sub": "user_1", "exp": LATER + 60, "nbf": LATER},
        {"sub": "user_1", "exp": LATER + 60, "iat": LATER},
        {"sub": "user_1", "exp": "soon"},
        {"sub": "user_1", "exp": None},
        {"sub": "user_1", "exp": float("inf")},
        {"sub": "user_1", "exp": float("nan")},
        {"sub": "user_1", "exp": True},
        {"sub": "user_1", "exp": 10**400},
        {"sub": "user_1", "exp": [LATER]},
        {"exp": LATER},
        {"sub": None, "exp": LATER},
        {"sub": "", "exp": LATER},
        {"sub": 7, "exp": LATER},
        {"sub": {"$ne": ""}, "exp": LATER},
        {},
        [],
        "user_1",
        b"\xff\xfe",
        b"[" * 3000,
    ],
)
def test_claims_that_do_not_count(authenticator: Authenticator, claims: Any) -> None:
    """A valid signature is not enough: expired tokens, tokens not yet valid and tokens without a user are refused."""
    refused(authenticator, token(claims))


def test_a_little_late(authenticator: Authenticator) -> None:
    """Clocks differ by a few seconds, so a token that expired that recently is still accepted."""
    assert checked(authenticator, token({"sub": "u", "exp": int(time.time()) - 1})).clerk_id == "u"


@pytest.mark.parametrize("secret", ["another secret that is long enough too", SECRET[:-1], SECRET + " ", ""])
def test_another_secret(authenticator: Authenticator, secret: str) -> None:
    """A token signed with another secret is refused."""
    refused(authenticator, token({"sub": "user_1", "exp": LATER}, secret))


@pytest.mark.parametrize(
    "alg",
    ["none", "None", "NONE", "HS384", "HS512", "RS256", "ES256", "EdDSA", "hs256", "", None, 7, ["HS256"], "x" * 999],
)
def test_other_algorithms(authenticator: Authenticator, alg: Any) -> None:
    """Only the algorithm that is configured counts, whatever a token says of itself."""
    whole = token({"sub": "user_1", "exp": LATER}, alg=alg)
    refused(authenticator, whole)
    refused(authenticator, whole.rpartition(".")[0] + ".")


def test_a_changed_token_is_refused(authenticator: Authenticator) -> None:
    """Claims can't be changed after signing."""
    head, _, signature = token({"sub": "user_1", "exp": LATER}).split(".")
    refused(authenticator, f"{head}.{part({'sub': 'user_2', 'exp': LATER})}.{signature}")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        ".",
        "..",
        "a.b.c",
        "nonsense-that-is-no-token",
        "a" * 5000,
        "a" * 70_000,
        "é.è.ê",
        "\ud800.\udcff.x",
        "\0",
        f"{part([])}.{part({})}.x",
        f"{part(b'[' * 3000)}.{part({})}.x",
        f"{part({'alg': 'HS256', 'crit': ['x']})}.{part({})}.x",
        f"{part({'alg': 'HS256', 'b64': False})}..x",
        f"{part({'alg': 'HS256', 'kid': 7})}.{part({})}.x",
        f"{part({})}.{part({})}.",
        token({"sub": "user_1", "exp": LATER}) + "x",
        token({"sub": "user_1", "exp": LATER}) + ".x",
        "Bearer " + token({"sub": "user_1", "exp": LATER}),
    ],
)
def test_garbage(authenticator: Authenticator, bad: str) -> None:
    """Text that is no token is refused and breaks nothing."""
    refused(authenticator, bad)


@settings(max_examples=150)
@given(
    st.text(max_size=60)
    | st.lists(
        st.binary(max_size=40).map(part) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(part)
    ).map(".".join)
)
def test_anything(bad: str) -> None:
    """No text from a stranger is accepted, or raises anything but a refusal."""
    refused(Authenticator([SECRET]), bad)


def test_nothing_configured() -> None:
    """A server without a secret takes no token, not even one signed with an empty one."""
    refused(Authenticator([]), token({"sub": "user_1", "exp": LATER}, ""))


def test_a_secret_is_changed() -> None:
    """While apps still hold tokens of the secret before, both are taken; an older one is not."""
    old, new = OctKey.import_key("the old secret, which is long enough"), OctKey.import_key(SECRET)
    authenticator = Authenticator([SECRET, "the old secret, which is long enough"])
    claims = {"sub": "user_1", "exp": LATER}
    for key in (old, new):
        assert checked(authenticator, jwt.encode({"alg": "HS256"}, claims, key)) == Identity("user_1", LATER)
    older = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key("an even older secret, long enough"))
    assert "signature" in refused(authenticator, older)
    expired = jwt.encode({"alg": "HS256"}, {**claims, "exp": LATER - 7200}, old)
    assert "expired" in refused(authenticator, expired)


# an issuer's tokens

RULES = Rules("https://clerk.venta.example", None, ("https://app.venta.example", "https://venta.example"))


@pytest.fixture
async def issued() -> AsyncIterator[Authenticator]:
    """Takes what Clerk signs, and what SECRET signs."""
    async with Issuer(RSA["r1"], EC["e1"]) as issuer:
        keys = IssuerKeys(issuer.url)
        running = asyncio.create_task(keys.run())
        yield Authenticator([SECRET], keys, RULES)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("key", [RSA["r1"], EC["e1"]], ids=["RS256", "ES256"])
async def test_session_tokens_as_they_are(issued: Authenticator, key: Key) -> None:
    """What Clerk gives an app is let in, from an origin that is ours or from an app that has none."""
    now = int(time.time())
    assert await issued.check(signed(key, {"exp": now + 60})) == Identity("user_1", now + 60)
    assert (await issued.check(signed(key, {"azp": "https://venta.example"}))).clerk_id == "user_1"
    assert (await issued.check(signed(key, {"azp": ...}))).clerk_id == "user_1"


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"exp": LATER - 7200}, "it expired 20"),
    ({"exp": ...}, 'missing the "exp" claim'),
    ({"nbf": LATER}, "(nbf)"),
    ({"iat": LATER}, "(iat)"),
    ({"iss": "https://clerk.other.example"}, "its issuer is 'https://clerk.other.example', not"),
    ({"iss": ...}, 'missing the "iss" claim'),
    ({"iss": ["https://clerk.venta.example"]}, "its issuer is"),
    ({"azp": "https://evil.example"}, "its azp is 'https://evil.example', which is not an accepted party"),
    ({"azp": ["https://venta.example"]}, "its azp is"),
    ({"azp": ""}, "its azp is"),
    ({"sub": ...}, 'missing the "sub" claim'),
    ({"sub": ""}, "sub is empty"),
]


@pytest.mark.parametrize("key", [RSA["r1"], EC["e1"]], ids=["RS256", "ES256"])
async def test_each_refusal_has_its_reason(issued: Authenticator, key: Key) -> None:
    """The developer of an app that is not let in reads which of a dozen reasons it is, and what was expected."""
    for claims, why in REFUSALS:
        assert why in await why_refused(issued, signed(key, claims))


def test_an_audience() -> None:
    """A token made for another service of the same issuer is not one for us."""
    authenticator = Authenticator([SECRET], None, Rules(audience="streamer"))
    for aud in ("streamer", ["web", "streamer"]):
        assert checked(authenticator, token({"sub": "u", "exp": LATER, "aud": aud})).clerk_id == "u"
    assert "its audience is 'web', not 'streamer'" in refused(
        authenticator, token({"sub": "u", "exp": LATER, "aud": "web"})
    )
    assert 'missing the "aud" claim' in refused(authenticator, token({"sub": "u", "exp": LATER}))
    assert "its audience" in refused(authenticator, token({"sub": "u", "exp": LATER, "aud": {"streamer": 1}}))
    ours = make_token(SECRET, "u", 60, claims=Rules("i", "streamer").claims)
    assert checked(Authenticator([SECRET], None, Rules("i", "streamer")), ours).clerk_id == "u"


def test_how_far_clocks_may_differ() -> None:
    """An operator whose issuer's clock is off can say by how much, and nothing beyond that is taken."""
    strict, lax = Authenticator([SECRET], None, Rules(leeway=0)), Authenticator([SECRET], None, Rules(leeway=60))
    for claims in (
        {"sub": "u", "exp": int(time.time()) - 20},
        {"sub": "u", "exp": LATER, "nbf": int(time.time()) + 20},
    ):
        refused(strict, token(claims))
        assert checked(lax, token(claims)).clerk_id == "u"
    refused(lax, token({"sub": "u", "exp": int(time.time()) - 90}))


async def test_keys_that_are_not_the_issuers(issued: Authenticator) -> None:
    """A token with a made-up key or key id is refused."""
    assert "the issuer has no key 'e2'" in await why_refused(issued, signed(EC["e2"]))
    assert "signature" in await why_refused(issued, signed(EC["e2"], kid="e1"))
    assert "signature" in await why_refused(issued, signed(RSA["r2"], kid="r1"))
    assert "names no key" in await why_refused(issued, signed(EC["e1"], kid=None))


async def test_confused_algorithms(issued: Authenticator) -> None:
    """The issuer's public key, which everyone knows, must not verify an HMAC token, nor one of another algorithm."""
    for kid, key in (("r1", RSA["r1"]), ("e1", EC["e1"])):
        for pem in (key.as_pem(private=False), json.dumps(public(key)["keys"][0]).encode()):
            claims = {"sub": "user_1", "exp": LATER, "iss": RULES.issuer}
            assert "signature" in await why_refused(issued, token(claims, pem, kid=kid))
            for alg in ("RS256", "ES256", "none", "PS256", "HS384"):
                await why_refused(issued, token(claims, pem, kid=kid, alg=alg))
    await why_refused(issued, signed(EC["e1"], kid="r1"))
    unsigned = f"{part({'alg': 'none', 'kid': 'e1'})}.{part({'sub': 'user_1', 'exp': LATER})}."
    assert "'none' are not accepted" in await why_refused(issued, unsigned)
