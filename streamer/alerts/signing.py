"""Secrets and signatures as in the Standard Webhooks specification, and the encryption of secrets at rest. Pure."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from streamer.errors import SettingsError

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> str:
    """Returns a new signing secret in the form that the receiver gets."""
    return PREFIX + b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """Returns the `webhook-signature` of a message; `timestamp` is epoch seconds."""
    key = b64decode(secret.removeprefix(PREFIX))
    signed = b"%b.%d.%b" % (id.encode(), timestamp, body)
    return "v1," + b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def headers(secret: str, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Returns the headers that the specification requires."""
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, id, timestamp, body),
    }


class Vault:
    """Encrypts and decrypts secrets with keys from the settings: the first encrypts, all decrypt."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet(
            [Fernet(urlsafe_b64encode(hashlib.sha256(b"venta alerts\0" + key.encode()).digest())) for key in keys]
        )

    def encrypt(self, secret: str) -> bytes:
        """Returns a secret in its stored form."""
        return self._fernet.encrypt(secret.encode())

    def decrypt(self, stored: bytes) -> str:
        """Returns a stored secret.

        Raises:
            SettingsError: It was encrypted with another key.
        """
        try:
            return self._fernet.decrypt(stored).decode()
        except InvalidToken:
            raise SettingsError(
                "an alert's secret was encrypted with another key: set STREAMER_ALERT_KEY, or "
                "STREAMER_ALERT_KEY_PREVIOUS, to the key that was in force when the alert was created"
            ) from None
