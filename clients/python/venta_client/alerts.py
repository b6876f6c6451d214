"""Alerts: webhooks for users who are not connected."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NotRequired, Self, TypedDict, cast

import aiohttp
from yarl import URL

from venta_client.link import Token
from venta_client.sign_in import refusal
from venta_client.wire import Area

AlertEvent = Literal["entered", "left", "opened", "closed", "online", "offline"]


class Disabled(TypedDict):
    """When the alert was disabled (epoch ms), and why."""

    at: int
    reason: str


class Alert(TypedDict):
    """An alert. Times are epoch ms."""

    id: str
    area: NotRequired[Area]
    vendors: NotRequired[list[str]]
    open: NotRequired[bool]
    on: list[AlertEvent]
    url: str
    quiet: int
    expires: NotRequired[int]
    metadata: NotRequired[dict[str, Any]]
    createdAt: int
    updatedAt: int
    startedAt: NotRequired[int]
    failingSince: NotRequired[int]
    disabled: NotRequired[Disabled]


class NewAlert(Alert):
    """A new alert; `secret` signs its webhooks and is returned only here."""

    secret: str


class Attempt(TypedDict):
    """One request: its time (epoch ms), duration (ms), and status, or the error."""

    at: int
    ms: int
    status: NotRequired[int]
    error: NotRequired[str]


class Delivery(TypedDict):
    """A webhook and its attempts."""

    id: str
    type: str
    at: int
    state: Literal["waiting", "delivered", "given up"]
    attempts: list[Attempt]
    vendorId: NotRequired[str]
    nextAttempt: NotRequired[int]


class Alerts:
    """The alerts of one user, an async context manager. Methods raise RequestRefused when the server refuses."""

    def __init__(self, url: str, *, token: Token = None) -> None:
        self._url = URL(url) / "v1/alerts"
        self._token = token

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def create(
        self,
        on: Sequence[AlertEvent],
        url: str,
        *,
        area: Area | None = None,
        vendors: Sequence[str] | None = None,
        open: bool | None = None,
        quiet: int | None = None,
        expires: int | str | None = None,
        metadata: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> NewAlert:
        """Creates an alert for an area or some vendors; a repeated `key` returns the first alert.

        Args:
            on: The events that send a webhook.
            url: The receiver: https://, on the public internet.
            quiet: Minimum time between two webhooks of the same vendor and event, ms (600,000).
            expires: When it ends: epoch ms, or RFC 3339.
            metadata: Included in each webhook.
        """
        members = {"area": area, "vendors": vendors, "open": open, "quiet": quiet, "expires": expires}
        given = {name: value for name, value in {**members, "metadata": metadata}.items() if value is not None}
        headers = {} if key is None else {"Idempotency-Key": key}
        return cast(NewAlert, await self._request("POST", self._url, {**given, "on": list(on), "url": url}, headers))

    async def get(self, id: str) -> Alert:
        """Returns an alert."""
        return cast(Alert, await self._request("GET", self._url / id))

    async def update(self, id: str, **changes: Any) -> Alert:
        """Changes the given members, which may include `disabled`; None removes one."""
        return cast(Alert, await self._request("PATCH", self._url / id, changes))

    async def delete(self, id: str) -> None:
        """Deletes an alert and its pending webhooks."""
        await self._request("DELETE", self._url / id)

    async def test(self, id: str) -> str:
        """Sends a test webhook; returns its id."""
        return cast(str, (await self._request("POST", self._url / id / "test"))["id"])

    async def list(self) -> AsyncIterator[Alert]:
        """Yields all alerts, oldest first."""
        async for alert in self._pages("alerts", self._url):
            yield cast(Alert, alert)

    async def deliveries(self, id: str) -> AsyncIterator[Delivery]:
        """Yields the webhooks of an alert and their attempts, newest first."""
        async for delivery in self._pages("deliveries", self._url / id / "deliveries"):
            yield cast(Delivery, delivery)

    async def _pages(self, name: str, url: URL) -> AsyncIterator[Any]:
        cursor: str | None = None
        while True:
            page = await self._request("GET", url.with_query({"limit": 100} | ({"cursor": cursor} if cursor else {})))
            for one in page[name]:
                yield one
            cursor = page["next"]
            if cursor is None:
                return

    async def _request(
        self, method: str, url: URL, body: Any = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        token = self._token(False) if callable(self._token) else self._token
        token = await token if inspect.isawaitable(token) else token
        headers = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        async with self._session.request(method, url, json=body, headers=headers) as answer:
            if not answer.ok:
                raise await refusal(answer)
            answered: dict[str, Any] = {} if answer.status == 204 else await answer.json(content_type=None)
            return answered
