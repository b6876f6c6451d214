"""Synchronous clients for scripts: the same methods, but blocking. An event loop runs in a thread.

    with VendorClient(url, token=token, queue=SqliteQueue("pings.db")) as vendor:
        vendor.ping(52.2297, 21.0122)
        vendor.flushed(timeout=30)

A `timeout` is in seconds, after which TimeoutError is raised. Callbacks run in the loop's thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from venta_client import alerts, customer, vendor
from venta_client.alerts import Alert, AlertEvent, Delivery, NewAlert
from venta_client.errors import ConnectionFailed
from venta_client.events import Event
from venta_client.link import State, Token
from venta_client.queues import MemoryQueue, SqliteQueue
from venta_client.sign_in import SignedIn
from venta_client.sign_in import sign_in as sign_in_async
from venta_client.wire import Area, Card, Group

__all__ = [
    "Alerts",
    "CountsWatch",
    "CustomerClient",
    "MemoryQueue",
    "SqliteQueue",
    "VendorClient",
    "Watch",
    "sign_in",
]

Result = TypeVar("Result")
Item = TypeVar("Item")
AnyClient = TypeVar("AnyClient", vendor.VendorClient, customer.CustomerClient)


class _Loop:
    """An event loop in its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="venta-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result], timeout: float | None = None) -> Result:
        """Runs a coroutine and returns its result; an interruption cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("called from a callback, which runs in the client's own thread: call it from another")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise
            raise TimeoutError(f"not done within {timeout:g} s") from None
        finally:
            future.cancel()

    def call(self, function: Callable[[], Result]) -> Result:
        """Calls a function in the loop's thread and returns its result."""

        async def called() -> Result:
            return function()

        return self.run(called())

    def iterate(self, items: AsyncIterator[Item], timeout: float | None = None) -> Iterator[Item]:
        """Yields the items of an asynchronous iterator; `timeout` applies to each."""
        while True:
            try:
                yield self.run(_next(items), timeout)
            except StopAsyncIteration:
                return

    def end(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(items: AsyncIterator[Item]) -> Item:
    return await anext(items)


class _Client(Generic[AnyClient]):
    def __init__(self, make: Callable[[], AnyClient]) -> None:
        self._loop = _Loop()
        self._ended = False
        try:
            self._client: AnyClient = self._loop.call(make)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        try:
            self._loop.run(self._client.connect())
        except BaseException:
            self.disconnect()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    @property
    def state(self) -> State:
        """The state of the connection."""
        return self._client.state

    @property
    def failure(self) -> ConnectionFailed | None:
        """Why the client does not reconnect; None while it does."""
        return self._client.failure

    def ready(self, timeout: float | None = None) -> None:
        """Returns when connected; raises ConnectionFailed if the connection fails for good."""
        self._loop.run(self._client.ready(), timeout)

    def disconnect(self) -> None:
        """Closes the connection and ends the client."""
        if not self._ended:
            try:
                self._loop.run(self._client.disconnect())
            finally:
                self._end()

    def _end(self) -> None:
        self._ended = True
        self._loop.end()


class VendorClient(_Client[vendor.VendorClient]):
    """Reports a vendor's positions, a context manager. The options are those of `venta_client.VendorClient`."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(lambda: vendor.VendorClient(url, **options))

    @property
    def waiting(self) -> int:
        """The number of pings that are not acked yet."""
        return self._client.waiting

    def ping(self, lat: float, long: float, **more: Any) -> int:
        """Keeps a position until it is stored; returns its timestamp once it is in the queue."""
        return self._loop.run(self._client.ping(lat, long, **more))

    def set_open(self, open: bool, *, hidden: bool = False) -> None:
        """Opens or closes for business."""
        self._loop.call(lambda: self._client.set_open(open, hidden=hidden))

    def flushed(self, timeout: float | None = None) -> None:
        """Returns when all pings are stored or rejected; raises ConnectionFailed if the connection fails for good."""
        self._loop.run(self._client.flushed(), timeout)

    def when_stored(self, timestamp: int, timeout: float | None = None) -> None:
        """Returns when the ping with this timestamp is stored; raises PingRejected if it never will be."""
        self._loop.run(self._client.when_stored(timestamp), timeout)


class _BaseWatch(Generic[Item]):
    def __init__(self, loop: _Loop, watch: customer.BaseWatch[Item]) -> None:
        self._loop = loop
        self._base = watch

    @property
    def fresh(self) -> bool:
        """False while the view may be outdated."""
        return self._base.fresh

    def ready(self, timeout: float | None = None) -> Mapping[str, Item]:
        """Returns the view once it is exact; raises WatchRefused if the server refused the watch."""
        return self._loop.run(self._base.ready(), timeout)

    def views(self) -> Iterator[Mapping[str, Item]]:
        """Yields the view after each change."""
        return self._loop.iterate(self._base.views())

    def close(self) -> None:
        """Ends the watch."""
        self._loop.call(self._base.close)


class Watch(_BaseWatch[Card]):
    """A watched area or list; iterate for events."""

    def __init__(self, loop: _Loop, watch: customer.Watch) -> None:
        super().__init__(loop, watch)
        self._watch = watch

    @property
    def vendors(self) -> Mapping[str, Card]:
        """The view, by vendorId."""
        return self._watch.vendors

    def __iter__(self) -> Iterator[Event]:
        return self._loop.iterate(aiter(self._watch))


class CountsWatch(_BaseWatch[Group]):
    """Counts in an area: `groups` are vendors near each other, by the group's name."""

    def __init__(self, loop: _Loop, watch: customer.CountsWatch) -> None:
        super().__init__(loop, watch)
        self._watch = watch

    @property
    def groups(self) -> Mapping[str, Group]:
        """The groups, by name."""
        return self._watch.groups


class CustomerClient(_Client[customer.CustomerClient]):
    """Watches areas and vendors, a context manager. The options are those of `venta_client.CustomerClient`."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(lambda: customer.CustomerClient(url, **options))

    def watch(self, area: Area | None = None, *, vendors: Sequence[str] | None = None, **options: Any) -> Watch:
        """Watches an area or some vendors; `open`: only open ones, `interval`: minimum ms between two updates."""
        return Watch(self._loop, self._loop.call(lambda: self._client.watch(area, vendors=vendors, **options)))

    def counts(self, area: Area, **options: Any) -> CountsWatch:
        """Counts vendors in an area, in at most about `detail` groups."""
        return CountsWatch(self._loop, self._loop.call(lambda: self._client.counts(area, **options)))


class Alerts:
    """The alerts of one user, a context manager. Methods raise RequestRefused when the server refuses."""

    def __init__(self, url: str, *, token: Token = None, timeout: float = 60.0) -> None:
        self._alerts = alerts.Alerts(url, token=token)
        self._timeout = timeout

    def __enter__(self) -> Self:
        self._loop = _Loop()
        self._run(self._alerts.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._alerts.__aexit__(kind, error, trace))
        finally:
            self._loop.end()

    def create(self, on: Sequence[AlertEvent], url: str, **options: Any) -> NewAlert:
        """Creates an alert; the options are those of `venta_client.alerts.Alerts.create`."""
        return self._run(self._alerts.create(on, url, **options))

    def get(self, id: str) -> Alert:
        """Returns an alert."""
        return self._run(self._alerts.get(id))

    def update(self, id: str, **changes: Any) -> Alert:
        """Changes the given members, which may include `disabled`; None removes one."""
        return self._run(self._alerts.update(id, **changes))

    def delete(self, id: str) -> None:
        """Deletes an alert and its pending webhooks."""
        self._run(self._alerts.delete(id))

    def test(self, id: str) -> str:
        """Sends a test webhook; returns its id."""
        return self._run(self._alerts.test(id))

    def list(self) -> Iterator[Alert]:
        """Yields all alerts, oldest first."""
        return self._loop.iterate(self._alerts.list(), self._timeout)

    def deliveries(self, id: str) -> Iterator[Delivery]:
        """Yields the webhooks of an alert and their attempts, newest first."""
        return self._loop.iterate(self._alerts.deliveries(id), self._timeout)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._loop.run(work, self._timeout)


def sign_in(url: str, code: str) -> SignedIn:
    """Exchanges the one-time code of a sign-in link for a token; raises RequestRefused if wrong, expired or used."""
    return asyncio.run(sign_in_async(url, code))
