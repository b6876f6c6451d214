"""Runs the cases of clients/conformance/wire.json: scripts of steps for the server and the client, and checks."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from streamer.dev.conformance.program import Program
from streamer.dev.conformance.server import CaseServer, Connection
from streamer.errors import SettingsError
from streamer.web.static import installed_folder

WITHIN = 20.0
"""Maximum seconds of a step, so that a case ends when an expected event does not happen."""
NEAR = 60_000
"""Milliseconds within which a time is near another."""


class Case(NamedTuple):
    """One case for one kind of client: `why` says what would go wrong for users."""

    name: str
    client: str
    why: str
    settings: dict[str, Any]
    steps: list[dict[str, Any]]


class Verdict(NamedTuple):
    """The result of a case: `reason` is empty when the client passed."""

    case: Case
    reason: str


class Wrong(Exception):
    """The client failed the case."""


def tables() -> Path:
    """Return the folder of the case tables."""
    return installed_folder("conformance", "clients", "conformance")


def load() -> list[Case]:
    """Return the cases, one for each kind of client that they are for."""
    table = orjson.loads((tables() / "wire.json").read_bytes())
    return [
        Case(case["name"], client, case["why"], {**table["settings"], **case.get("settings", {})}, case["steps"])
        for case in table["cases"]
        for client in case["clients"]
    ]


async def judge(command: Sequence[str], case: Case, within: float = WITHIN) -> Verdict:
    """Run one case against a new process of the client."""
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    try:
        async with CaseServer() as server:
            try:
                await _Run(command, case, server, folder, within).all()
            except Wrong as wrong:
                return Verdict(case, str(wrong))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Verdict(case, "")


class _Run:
    """One case while it runs. Each method named after a step carries it out."""

    program: Program
    """Set by the first `restart`."""

    def __init__(self, command: Sequence[str], case: Case, server: CaseServer, folder: Path, within: float) -> None:
        self._command = command
        self._case = case
        self._server = server
        self._within = within
        self._now = int(time.time() * 1000)
        self._settings = {**case.settings, "file": str(folder / "queue")}
        self._connection: Connection | None = None
        self._lost = 0.0
        """When the last connection was ended by the script, by the monotonic clock."""
        self._seen: set[int] = set()
        """Numbers of the events that a step has waited for."""
        self._seqs: dict[int, int] = {}
        """The seq of each timestamp on this connection."""
        self._places: dict[int, tuple[Any, Any]] = {}
        """Where each ping was when it was first sent."""
        self._last_seq = 0
        self._difference = ""
        """The last difference of the view that a step waits for."""

    async def all(self) -> None:
        """Carry out the steps, and kill the client; raises Wrong, and SettingsError when it can't be started."""
        try:
            await self.restart({})
            for number, step in enumerate(self._case.steps, 1):
                await self._carry_out(number, step)
        finally:
            await self._kill()

    async def _carry_out(self, number: int, step: dict[str, Any]) -> None:
        (name, value), *_ = step.items()
        action: Callable[[Any], Coroutine[Any, Any, object]] = getattr(self, name)
        try:
            async with asyncio.timeout(self._within):
                await self._unless_ended(asyncio.create_task(action(self._resolved(value))), name)
            self._check()
        except (Wrong, TimeoutError) as failed:
            shown = orjson.dumps(step).decode()
            shown = shown if len(shown) < 300 else f"{shown[:300]} …"
            reason = str(failed) or f"this did not happen within {self._within:g} s; {self._report()}"
            raise Wrong(f"step {number}, {shown}: {reason}") from None

    async def _kill(self) -> None:
        if hasattr(self, "program"):
            await self.program.kill()

    async def _unless_ended(self, step: asyncio.Task[object], name: str) -> None:
        """Wait for a step; fails if the program ends meanwhile, unless the step expects that."""
        ended = asyncio.create_task(self.program.end())
        try:
            await asyncio.wait({step} if name == "restart" else {step, ended}, return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                step.result()
        finally:
            for task in (step, ended):
                task.cancel()
            await asyncio.gather(step, ended, return_exceptions=True)

    # the client

    async def restart(self, changed: dict[str, Any]) -> None:
        """Kill the client, as when a phone runs out of battery, and start it again, optionally with other settings."""
        await self._kill()
        self._settings |= changed
        self._seen.clear()
        program = Program(self._command, self._case.client, self._server.url, self._settings)
        try:
            await program.__aenter__()
        except OSError as failed:
            raise SettingsError(f"the client can't be started: {failed}") from None
        self.program = program

    async def tell(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send the client a command, and wait until it is done."""
        number = self.program.tell(command)
        done = await self.program.until(lambda event: event.get("event") == "done" and event.get("number") == number)
        if done is None:
            raise Wrong("the program ended")
        return done

    async def event(self, pattern: dict[str, Any]) -> None:
        """Wait until the client reports an event; each event is matched once."""

        def fits(event: dict[str, Any]) -> bool:
            return id(event) not in self._seen and _differs(event, pattern) is None

        found = await self.program.until(fits)
        if found is None:
            raise Wrong("the program ended")
        self._seen.add(id(found))

    async def never(self, pattern: dict[str, Any]) -> None:
        """Check that the client has not reported an event that no step has waited for."""
        for event in self.program.events:
            if id(event) not in self._seen and _differs(event, pattern) is None:
                raise Wrong(f"it reported {event}")

    async def view(self, expected: dict[str, Any]) -> None:
        """Wait until a watch's view equals the expected one."""
        while True:
            answer = await self.tell({"do": "view", "id": expected["id"]})
            self._difference = _view_differs(answer, expected) or ""
            if not self._difference:
                return
            await asyncio.sleep(0.02)

    # the server

    async def accept(self, expected: dict[str, Any]) -> None:
        """Wait for a connection and open the WebSocket."""
        arrived = await self._server.arrivals.get()
        early = (self._lost - arrived.arrived) * 1000 + expected.get("notBefore", 0)
        if "notBefore" in expected and early > 0:
            raise Wrong(f"it came {early:.0f} ms too early")
        path = f"/v1/{'vendor' if self._case.client == 'vendor' else 'watch'}"
        if arrived.path != path:
            raise Wrong(f"it asked for {arrived.path}, not {path}")
        if "token" in expected and arrived.token != expected["token"]:
            raise Wrong(f"its token was {arrived.token!r}")
        if (difference := _differs(arrived.query, expected.get("query", {}))) is not None:
            raise Wrong(f"in its query {difference}")
        arrived.accept()
        self._connection = arrived
        self._seqs, self._last_seq = {}, 0

    async def hello(self, fields: dict[str, Any]) -> None:
        """Greet a vendor."""
        hello = {"type": "hello", "vendorId": "v", "time": int(time.time() * 1000), "durable": None, "maxBatch": 500}
        self._open.send({**hello, **fields})

    async def open(self, fields: dict[str, Any]) -> None:
        """Accept, greet, and wait until the client reports that it is connected."""
        await self.accept({name: fields.pop(name) for name in ("notBefore", "token", "query") if name in fields})
        if self._case.client == "vendor":
            await self.hello(fields)
        await self.event({"event": "state", "state": "connected"})

    async def refuse(self, how: dict[str, Any]) -> None:
        """Refuse handshakes with a status, or cut them: one, or all for `for` ms, of which at most `most` may come."""
        came, until = 0, 0.0
        while came == 0 or time.monotonic() < until:
            try:
                async with asyncio.timeout(until - time.monotonic() if came else None):
                    arrived = await self._server.arrivals.get()
            except TimeoutError:
                break
            if came == 0:
                until = time.monotonic() + how.get("for", 0) / 1000
            came += 1
            if "status" in how:
                arrived.refuse(how["status"])
            else:
                arrived.cut()
        self._lost = time.monotonic()
        if came > how.get("most", came):
            raise Wrong(f"it tried {came} times within {how['for']} ms; at most {how['most']} are allowed")

    async def send(self, message: Any) -> None:
        """Send a message as one plain frame."""
        self._open.send(message)

    async def compressed(self, message: Any) -> None:
        """Send a message compressed, if the client offers it."""
        self._open.send(message, "compressed")

    async def fragments(self, message: Any) -> None:
        """Send a message in three fragments with a WebSocket ping between."""
        self._open.send(message, "fragments")

    async def large(self, how: dict[str, Any]) -> None:
        """Send a snapshot with this many vendors."""
        card = {
            "name": "Tacos",
            "open": True,
            "primaryImage": None,
            "online": True,
            "lat": 1,
            "long": 2,
            "timestamp": 1,
        }
        cards = [{"vendorId": f"v{number}", **card} for number in range(how["vendors"])]
        self._open.send({"type": "snapshot", "id": how["id"], "vendors": cards})

    async def receive(self, pattern: dict[str, Any]) -> None:
        """Wait for the client's next message, which must match."""
        message = await self._open.messages.get()
        if (difference := _differs(message, pattern)) is not None:
            raise Wrong(f"it sent {orjson.dumps(message).decode()[:300]}: {difference}")

    async def pings(self, expected: Any) -> None:
        """Wait for pings, in any number of messages: these timestamps, or a `count` that is `near` a time."""
        most = expected.get("maxBatch", 500) if isinstance(expected, dict) else 500
        timestamps = expected.get("timestamps") if isinstance(expected, dict) else expected
        wanted = len(timestamps) if timestamps is not None else expected["count"]
        got: list[int] = []
        while len(got) < wanted:
            message = await self._open.messages.get()
            batch = message.get("pings", [message])
            if message.get("type", "ping") not in ("ping", "pings"):
                raise Wrong(f"it sent {orjson.dumps(message).decode()[:300]}")
            if len(batch) > most:
                raise Wrong(f"it sent {len(batch)} pings in one message; hello.maxBatch was {most}")
            got += [self._ping(ping) for ping in batch]
        if timestamps is not None and sorted(got) != sorted(timestamps):
            raise Wrong(f"it sent the timestamps {got}, not {timestamps}")
        if timestamps is None and any(abs(at - expected["near"]) > NEAR for at in got):
            raise Wrong(f"it sent the timestamps {got}, which are not near {expected['near']}")
        if isinstance(expected, dict) and "first" in expected and got[0] != expected["first"]:
            raise Wrong(f"it sent {got[0]} first, not the newest, {expected['first']}")

    async def ack(self, timestamp: Any) -> None:
        """Acknowledge up to the ping with this timestamp, or `all`."""
        self._open.send({"type": "ack", "seq": self._last_seq if timestamp == "all" else self._seqs[timestamp]})

    async def reject(self, how: dict[str, Any]) -> None:
        """Reject the ping with a timestamp."""
        timestamp = how.pop("timestamp")
        self._open.send({"type": "reject", "seq": self._seqs[timestamp], "message": "rejected by the case", **how})

    async def close(self, how: dict[str, Any]) -> None:
        """Close with a code, as the server does."""
        self._lost = time.monotonic()
        self._open.close(how["code"], how.get("reason", ""))

    async def cut(self, _: Any) -> None:
        """End the connection without a close frame."""
        self._lost = time.monotonic()
        self._open.cut()

    async def stall(self, _: Any) -> None:
        """Leave the connection half-open."""
        self._open.stall()

    async def closed(self, _: Any) -> None:
        """Wait until the client has ended the connection."""
        await asyncio.shield(self._open.closed)

    async def quiet(self, ms: int) -> None:
        """Check that the client is quiet for a time: no connection, no message."""
        await asyncio.sleep(ms / 1000)
        if not self._server.arrivals.empty():
            raise Wrong("it connected again")
        if self._connection is not None and not self._open.messages.empty():
            raise Wrong(f"it sent {self._open.messages.get_nowait()}")

    # inside

    @property
    def _open(self) -> Connection:
        assert self._connection is not None, "a script begins with `open` or `accept`"
        return self._connection

    def _ping(self, ping: dict[str, Any]) -> int:
        seq, timestamp = ping.get("seq", self._last_seq + 1), ping.get("timestamp")
        if type(seq) is not int or seq <= self._last_seq:
            raise Wrong(f"seq {seq!r} does not rise above {self._last_seq}")
        if type(timestamp) is not int:
            raise Wrong(f"a ping kept by an app needs its timestamp in ms: {ping}")
        place = (ping.get("lat"), ping.get("long"))
        if not all(type(degrees) in (int, float) for degrees in place):
            raise Wrong(f"lat and long are numbers in degrees: {ping}")
        if self._places.setdefault(timestamp, place) != place:
            raise Wrong(f"the ping {timestamp} was at {self._places[timestamp]} before, and is at {place} now")
        self._last_seq = self._seqs[timestamp] = seq
        return timestamp

    def _check(self) -> None:
        """Raise errors that are independent of the steps."""
        for connection in self._server.connections:
            if connection.faults:
                raise Wrong(f"it violated the protocol: {connection.faults[0]}")
        if self.program.ended:
            raise Wrong(f"the program ended: {self.program.errors.decode(errors='replace')[-500:]}")

    def _report(self) -> str:
        errors = self.program.errors.decode(errors="replace").strip()[-500:]
        parts = [
            f"the view: {self._difference}" if self._difference else "",
            f"last events: {self.program.events[-4:]}",
        ]
        return "; ".join(filter(None, [*parts, f"on stderr: {errors}" if errors else ""]))

    def _resolved(self, value: Any) -> Any:
        """A step's value with times in place of `now`, `now-1000` and the like."""
        if isinstance(value, dict):
            return {name: self._resolved(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._resolved(item) for item in value]
        if value == "clock":
            return int(time.time() * 1000)
        if isinstance(value, str) and value.startswith("now") and not value[3:].strip("+-0123456789"):
            return self._now + int(value[3:] or 0)
        return value


def _differs(found: Any, pattern: Any) -> str | None:
    """Returns the first difference from a pattern. An object names some members; null is one that must be absent."""
    if isinstance(pattern, dict) and isinstance(found, dict):
        for name, expected in pattern.items():
            if expected is None and found.get(name) is None:
                continue
            if (difference := _differs(found.get(name), expected)) is not None:
                return f"{name} {difference}" if not isinstance(expected, dict) else f"{name}: {difference}"
        return None
    if isinstance(pattern, list) and isinstance(found, list) and len(found) == len(pattern):
        return next(filter(None, map(_differs, found, pattern)), None)
    return None if found == pattern else f"is {found!r}, not {pattern!r}"


def _view_differs(answer: dict[str, Any], expected: dict[str, Any]) -> str | None:
    if answer.get("fresh") is not expected.get("fresh", True):
        return f"fresh is {answer.get('fresh')}"
    for kind, key in (("vendors", "vendorId"), ("groups", "group")):
        if kind in expected:
            found = {item[key]: item for item in answer.get(kind, [])}
            if found.keys() != expected[kind].keys():
                return f"{kind} are {sorted(found)}, not {sorted(expected[kind])}"
            return _differs(found, expected[kind])
    if "size" in expected and len(answer.get("vendors", [])) != expected["size"]:
        return f"{len(answer.get('vendors', []))} vendors"
    return None
