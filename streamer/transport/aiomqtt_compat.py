"""The one place that reaches into aiomqtt: acks a message when the application says so, not when it is received.

paho-mqtt, which aiomqtt wraps, has `manual_ack_set` and `ack` for that; aiomqtt does not expose them. This uses one
private attribute of aiomqtt: `Client._client`, the paho client. The tests of this module fail when that changes.
"""

from __future__ import annotations

from aiomqtt import Client, Message


def ack_by_hand(client: Client) -> None:
    """Turns off automatic acks of a client that is not connected yet: `ack` sends them."""
    client._client.manual_ack_set(True)


def ack(client: Client, message: Message) -> None:
    """Tells the broker that a message need not be sent again; the connection must be the one it came over."""
    if message.qos > 0:
        client._client.ack(message.mid, message.qos)
