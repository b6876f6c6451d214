"""Signatures that any library of the Standard Webhooks specification verifies."""

from __future__ import annotations

import base64

import pytest

from streamer.alerts.signing import Vault, headers, new_secret, signature
from streamer.errors import SettingsError


def test_the_specifications_example_is_signed_as_the_specification_says() -> None:
    """Otherwise a receiver that uses a library would refuse every webhook."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_headers_are_those_of_the_specification() -> None:
    """A name that is misspelt is a header that is missing."""
    found = headers(new_secret(), "c1", 1_700_000_000, b"{}")
    assert set(found) == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    assert found["webhook-timestamp"] == "1700000000"


def test_a_secret_is_long_enough_and_new_each_time() -> None:
    """A secret that can be guessed lets anybody sign."""
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(base64.b64decode(secret.removeprefix("whsec_"))) == 32 for secret in secrets)


def test_a_key_is_replaced_without_losing_secrets() -> None:
    """After a rotation no alert could be signed, unless the previous key still decrypts."""
    old, new = "o" * 32, "n" * 32
    stored = Vault([old]).encrypt("whsec_x")
    assert Vault([new, old]).decrypt(stored) == "whsec_x"
    with pytest.raises(SettingsError, match="STREAMER_ALERT_KEY_PREVIOUS"):
        Vault([new]).decrypt(stored)
