"""The Python client as a program for `streamer conformance`: reads commands as JSON lines on stdin, writes events.

python testee.py vendor|customer URL SETTINGS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from venta_client import CustomerClient, Event, MemoryQueue, SqliteQueue, VendorClient, Watch

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]


def say(event: str, **fields: Any) -> None:
    """Writes an event to stdout."""
    print(json.dumps({"event": event, **fields}), flush=True)


class Testee:
    """The commands of both clients."""

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self.token: str | None = settings.get("token")
        self.options: dict[str, Any] = {
            "token": self._token,
            "on_state": self._state,
            "on_error": lambda error: say(
                "error", error={"code": error.code, "message": error.message, "id": error.id}
            ),
        }
        for name in ("min_delay", "max_delay"):
            if (delay := settings.get({"min_delay": "minDelay", "max_delay": "maxDelay"}[name])) is not None:
                self.options[name] = delay / 1000
        if "silence" in settings:
            self.options["heartbeat"] = settings["silence"] / 1000

    client: CustomerClient | VendorClient

    def _token(self, refresh: bool) -> str | None:
        say("token", refresh=refresh)
        return self.token

    def _state(self, state: str) -> None:
        close = self.client._link.close
        say("state", state=state, **({} if close is None else {"code": close.code, "reason": close.reason}))

    async def do_connect(self, _: dict[str, Any]) -> None:
        await self.client.connect()

    async def do_disconnect(self, _: dict[str, Any]) -> None:
        await self.client.disconnect()

    async def do_token(self, fields: dict[str, Any]) -> None:
        self.token = fields["token"]


class VendorTestee(Testee):
    """A vendor's client."""

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        super().__init__(url, settings)
        self.wrong = settings.get("clock", 0) / 1000
        """The error of the device's clock in seconds."""
        self.client: VendorClient = VendorClient(
            url,
            **self.options,
            vendor_id=settings.get("vendorId"),
            limit=settings.get("maxQueue", 100_000),
            queue=SqliteQueue(settings["file"]) if "file" in settings else MemoryQueue(),
            on_stored=lambda pings: say("stored", timestamps=[ping.timestamp for ping in pings]),
            on_rejected=lambda ping, code, _: say("rejected", timestamp=ping.timestamp, code=code),
            on_dropped=lambda ping: say("dropped", timestamps=[ping.timestamp]),
            clock=lambda: time.time() + self.wrong,
        )

    async def do_ping(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"timestamps": await asyncio.gather(*(self.client.ping(**fix) for fix in fields["fixes"]))}

    async def do_open(self, fields: dict[str, Any]) -> None:
        self.client.set_open(fields["open"], hidden=fields.get("hidden", False))

    async def do_clock(self, fields: dict[str, Any]) -> None:
        self.wrong += fields["by"] / 1000

    async def do_flushed(self, _: dict[str, Any]) -> None:
        await self.client.flushed()

    async def do_size(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"size": self.client.waiting}


class CustomerTestee(Testee):
    """A customer's client."""

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        super().__init__(url, settings)
        self.client: CustomerClient = CustomerClient(url, **self.options)
        self.following: set[asyncio.Task[None]] = set()

    async def do_watch(self, fields: dict[str, Any]) -> None:
        wanted, id = dict(fields["wanted"]), fields["id"]
        if wanted.pop("as", None) == "counts":
            self.client.counts(**wanted, id=id)
            return
        watch = self.client.watch(**wanted, id=id)
        self.following.add(asyncio.create_task(self._follow(watch)))

    async def do_move(self, fields: dict[str, Any]) -> None:
        self.client.watches[fields["id"]].move(**fields["wanted"])  # type: ignore[attr-defined]  # no counts: they don't move

    async def do_unwatch(self, fields: dict[str, Any]) -> None:
        self.client.watches[fields["id"]].close()

    async def do_view(self, fields: dict[str, Any]) -> dict[str, Any]:
        watch = self.client.watches[fields["id"]]
        return {
            "fresh": watch.fresh,
            "vendors" if isinstance(watch, Watch) else "groups": list(watch._view_now.values()),
        }

    async def _follow(self, watch: Watch) -> None:
        """Checks that the events alone produce the view."""
        held: dict[str, Any] = {}
        while not watch.closed:
            try:
                async for event in watch:
                    self._apply(held, event)
                    if not watch._dirty and held != watch.vendors:
                        say("wrong", held=held)
            except Exception:
                await asyncio.sleep(0.05)  # refused: the case may move it

    @staticmethod
    def _apply(held: dict[str, Any], event: Event) -> None:
        vendor_id = event.card["vendorId"]
        if held.get(vendor_id) != event.before:
            say("wrong", reported=event)
        if event.kind == "left":
            held.pop(vendor_id, None)
        else:
            held[vendor_id] = event.card


async def main(kind: str, url: str, settings: str = "{}") -> None:
    """Runs the commands on stdin until its end."""
    testee = (VendorTestee if kind == "vendor" else CustomerTestee)(url, json.loads(settings))
    await testee.client.connect()
    doing: set[asyncio.Task[None]] = set()

    async def do(name: str, number: int, fields: dict[str, Any]) -> None:
        command: Command = getattr(testee, f"do_{name}")
        say("done", number=number, **(await command(fields) or {}))

    while line := await asyncio.to_thread(sys.stdin.readline):
        fields = json.loads(line)
        task = asyncio.create_task(do(fields.pop("do"), fields.pop("number", 0), fields))
        doing.add(task)
        task.add_done_callback(doing.discard)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
