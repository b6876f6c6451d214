"""`streamer watch` and `streamer ping`: a customer and a vendor in a developer's terminal."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import orjson
import typer

from streamer import settings
from streamer.cli.process import interrupts, run
from streamer.cli.token import sign
from streamer.dev.folder import DATA, read_services
from streamer.errors import SettingsError, StreamerError
from streamer.settings import coordinates

Url = Annotated[str | None, typer.Option(help="URL of the server; default: that of `streamer dev`.", metavar="URL")]
Token = Annotated[str | None, typer.Option(help="The token to send.")]
Data = Annotated[Path, typer.Option(help="Folder of `streamer dev`.")]

RETRY = 1.0
"""Seconds before a watch reconnects."""
ACK_TIMEOUT = 30.0
FINAL = range(4400, 4405)
"""Close codes after which a reconnect is pointless."""


def watch(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="A circle as LAT,LONG,METRES, a box as SOUTH,WEST,NORTH,EAST, or ids of vendors.",
            metavar="AREA|VENDOR...",
        ),
    ],
    url: Url = None,
    token: Token = None,
    user: Annotated[
        str | None, typer.Option(help="users.clerkId to sign a token for, with the server's secret.")
    ] = None,
    only_open: Annotated[bool, typer.Option("--open", help="Only vendors that are open.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's messages as JSON lines.")] = False,
    data: Data = DATA,
) -> None:
    """Print vendors of an area, or the given ones, as they move; until Ctrl-C. Put -- before a negative latitude."""
    message = {"type": "watch", "id": "w", **target_of(targets), **({"open": True} if only_open else {})}
    if token is None and user is not None:
        token = sign(data, user)
    run(_watch(server_of(url, data), token, message, as_json))


def ping(
    position: Annotated[str, typer.Argument(help="LAT,LONG in degrees.", metavar="LAT,LONG")],
    url: Url = None,
    token: Token = None,
    user: Annotated[
        str, typer.Option(help="users.clerkId to sign a token for, with the server's secret.")
    ] = "clerk_test_user",
    vendor: Annotated[str | None, typer.Option(help="The vendor, if the user has several.")] = None,
    data: Data = DATA,
) -> None:
    """Send one ping as a vendor and wait until it is stored. Put -- before a negative latitude."""
    lat, long = parsed_position(position)
    run(_ping(server_of(url, data), token or sign(data, user), vendor, lat, long))


def target_of(targets: list[str]) -> dict[str, Any]:
    """Returns the area or the vendors of a `watch` message; raises SettingsError for an invalid area."""
    if len(targets) == 1 and "," in targets[0]:
        try:
            numbers = [float(part) for part in targets[0].split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 3:
            return {"area": {"center": {"lat": numbers[0], "long": numbers[1]}, "radius": numbers[2]}}
        if len(numbers) == 4:
            south, west, north, east = numbers
            return {"area": {"sw": {"lat": south, "long": west}, "ne": {"lat": north, "long": east}}}
        raise SettingsError(f"an area is LAT,LONG,METRES or SOUTH,WEST,NORTH,EAST in degrees, not {targets[0]!r}")
    return {"vendors": targets}


def parsed_position(text: str) -> tuple[float, float]:
    """Returns latitude and longitude; raises SettingsError."""
    try:
        return coordinates(text)
    except ValueError as wrong:
        raise SettingsError(f"the position {wrong}, not {text!r}") from None


def server_of(url: str | None, data: Path) -> str:
    """Returns the URL of the server: the given one, or that of `streamer dev`."""
    if url is not None:
        return url.rstrip("/")
    configured = settings.load()
    host = "127.0.0.1" if configured.host in ("0.0.0.0", "::") else configured.host
    return read_services(data).get("http") or f"http://{host}:{configured.port}"


def lines(message: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    """Yields a line for each vendor in a message; `names` keeps the names of known vendors."""
    kind = message["type"]
    for change in ("vendors", "entered", "moved", "left"):
        for item in message.get(change, ()):
            fix = {"vendorId": item} if change == "left" else item
            vendor_id = fix["vendorId"]
            names[vendor_id] = name = fix.get("name") or names.get(vendor_id, "")
            cells = [kind if change == "vendors" else change, vendor_id, name]
            if change == "left":
                del names[vendor_id]
            else:
                cells += [
                    f"{fix['lat']:.6f},{fix['long']:.6f}",
                    time.strftime("%H:%M:%S", time.localtime(fix["timestamp"] / 1000)),
                ]
                cells += [word for word in ("open", "online") if fix.get(word)]
            yield "  ".join(filter(None, cells))
    if kind == "snapshot" and not message.get("vendors"):
        yield "snapshot  no vendors"
    elif kind not in ("snapshot", "update"):
        yield f"{kind}  {message.get('code', '')}  {message.get('message', '')}".rstrip()


async def _watch(url: str, token: str | None, message: dict[str, Any], as_json: bool) -> None:
    async with interrupts(), aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)) as session:
        await _watch_forever(session, url, token, message, as_json)


async def _watch_forever(
    session: aiohttp.ClientSession, url: str, token: str | None, message: dict[str, Any], as_json: bool
) -> None:
    connected = False
    while True:
        wait = RETRY
        names: dict[str, str] = {}
        try:
            async with session.ws_connect(f"{url}/v1/watch", headers=_headers(token), max_msg_size=0) as socket:
                connected = True
                await socket.send_str(json.dumps(message))
                async for frame in socket:
                    received = orjson.loads(frame.data)
                    if received["type"] == "bye":
                        wait = received["reconnectAfterMs"] / 1000
                    if as_json:
                        typer.echo(frame.data)
                    else:
                        for line in lines(received, names):
                            typer.echo(line)
                    if received["type"] == "error" and received.get("id") == message["id"]:
                        raise StreamerError(f"{url} refused the watch: {received['message']} ({received['code']})")
                code = socket.close_code
            if code in FINAL:
                raise StreamerError(f"{url} closed the connection ({code})")
            typer.echo(f"disconnected ({code}); reconnecting in {wait:.1f} s", err=True)
        except (aiohttp.ClientError, OSError) as error:
            if not connected:
                raise StreamerError(f"cannot connect to {url}: {_reason(error)}") from None
            typer.echo(f"cannot reconnect to {url}: {_reason(error)}; trying again", err=True)
        await asyncio.sleep(wait)


async def _ping(url: str, token: str, vendor: str | None, lat: float, long: float) -> None:
    params = {"vendorId": vendor} if vendor else {}
    try:
        async with (
            asyncio.timeout(ACK_TIMEOUT),
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}/v1/vendor", params=params, headers=_headers(token)) as socket,
        ):
            vendor_id = ""
            began = time.monotonic()
            async for frame in socket:
                message = orjson.loads(frame.data)
                kind = message["type"]
                if kind == "hello":
                    vendor_id, began = message["vendorId"], time.monotonic()
                    await socket.send_str(json.dumps({"type": "ping", "seq": 1, "lat": lat, "long": long}))
                elif kind == "ack":
                    typer.echo(
                        f"stored: vendor {vendor_id} at {lat},{long}, {(time.monotonic() - began) * 1000:.0f} ms"
                    )
                    return
                elif kind in ("error", "reject"):
                    raise StreamerError(f"{url} refused the ping: {message['message']} ({message['code']})")
            raise StreamerError(f"{url} closed the connection ({socket.close_code}) before the ping was stored")
    except TimeoutError:
        raise StreamerError(f"{url} did not store the ping within {ACK_TIMEOUT:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise StreamerError(f"cannot connect to {url}: {_reason(error)}") from None


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return f"it answers {error.status}: is this a location streamer?"
    return str(error) or type(error).__name__
