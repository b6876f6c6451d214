"""The URL of an MQTT broker."""

from __future__ import annotations

import ssl
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from streamer.errors import SettingsError


class MqttBroker(NamedTuple):
    """The broker's address and our credentials."""

    host: str
    port: int
    user: str | None
    password: str | None
    tls: ssl.SSLContext | None

    @property
    def where(self) -> str:
        """The broker for messages: without credentials."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_broker(url: str) -> MqttBroker:
    """Returns the broker of a URL, `mqtt://` or `mqtts://`; raises SettingsError."""
    wrong = "the broker's URL is mqtt://USER:PASSWORD@HOST:1883 or mqtts://USER:PASSWORD@HOST:8883"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{wrong}: {error}") from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/") or parts.fragment:
        raise SettingsError(f"{wrong}; percent-encode / ? # @ in user and password")
    options = parse_qs(parts.query, keep_blank_values=True)
    authority = options.pop("ssl_ca_certs", [None])[0]
    if options or (authority is not None and parts.scheme == "mqtt"):
        raise SettingsError(f"{wrong}; the only parameter is ssl_ca_certs=FILE, of mqtts")
    try:
        tls = ssl.create_default_context(cafile=authority) if parts.scheme == "mqtts" else None
    except OSError as error:
        raise SettingsError(f"ssl_ca_certs={authority} can't be read: {error.strerror or error}") from None
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return MqttBroker(parts.hostname, port or (8883 if tls else 1883), user, password, tls)
