"""The bridge's rules: which broker is meant, and what of paho-mqtt is used under aiomqtt."""

from __future__ import annotations

import pytest
from aiomqtt import Client, Message

from streamer.errors import SettingsError
from streamer.transport.aiomqtt_compat import ack, ack_by_hand
from streamer.transport.mqtt import QUEUED, Incoming
from streamer.transport.mqtt_url import parse_broker


@pytest.mark.parametrize(
    ("url", "host", "port", "user", "password"),
    [
        ("mqtt://broker", "broker", 1883, None, None),
        ("mqtt://me@broker:18", "broker", 18, "me", None),
        ("mqtt://me:a%2Fb%40c@10.0.0.1", "10.0.0.1", 1883, "me", "a/b@c"),
        ("mqtts://me:secret@[::1]", "::1", 8883, "me", "secret"),
    ],
)
def test_broker(url: str, host: str, port: int, user: str | None, password: str | None) -> None:
    """A password read wrong is a bridge that never receives."""
    broker = parse_broker(url)
    assert broker[:4] == (host, port, user, password)
    assert (broker.tls is not None) == url.startswith("mqtts:")
    assert "secret" not in broker.where


@pytest.mark.parametrize(
    "url",
    [
        "broker",
        "http://broker",
        "mqtt://",
        "mqtt://broker/topic",
        "mqtt://broker:port",
        "mqtt://me:a/b@broker",
        "mqtt://broker?qos=2",
        "mqtt://broker?ssl_ca_certs=/etc/ca.pem",
        "mqtts://broker?ssl_ca_certs=/is/not/there",
    ],
)
def test_no_broker(url: str) -> None:
    """A wrong broker URL must be reported at the start, not show as silence."""
    with pytest.raises(SettingsError):
        parse_broker(url)


async def test_acks_are_ours() -> None:
    """What this reaches into changed: every message would be acked before it is stored."""
    client = Client("127.0.0.1")
    sent: list[int] = []
    client._client._send_puback = sent.append  # type: ignore[method-assign,assignment]
    message = Message("owntracks/a/b", b"", 1, False, 7, None)
    ack(client, message)
    assert not sent
    ack_by_hand(client)
    ack(client, message)
    ack(client, Message("owntracks/a/b", b"", 0, False, 8, None))
    assert sent == [7]


async def test_only_what_nobody_sends_again_is_dropped() -> None:
    """A message of QoS 1 that was dropped here would take a place among the unacked ones until the next connection."""
    queue = Incoming()
    for qos in [0] * (QUEUED + 10) + [1] * 10:
        queue.put_nowait(Message("owntracks/a/b", b"", qos, False, 1, None))
    assert queue.qsize() == QUEUED + 10
