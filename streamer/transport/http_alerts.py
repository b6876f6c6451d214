"""`/v1/alerts`: a user's alerts, and the results of their webhooks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from aiohttp import web

from streamer.accounts.tokens import Authenticator
from streamer.alerts.delivery import Deliverer
from streamer.alerts.signing import Vault, new_secret
from streamer.alerts.url_check import check_url, host_of
from streamer.errors import ErrorCode, ProtocolError
from streamer.ingest.rate_limit import Rates
from streamer.protocol import alerts
from streamer.protocol.fields import decode_json, shown
from streamer.settings import Settings
from streamer.storage.alerts import AlertRow, AlertStore, Change, DeliveryRow, NewAlert
from streamer.transport.identify import identify
from streamer.transport.problem import NO_STORE, json_response
from streamer.transport.query import limit_of, paged

if TYPE_CHECKING:
    from streamer.alerts.evaluator import Evaluator

log = structlog.get_logger()

CHANGES_AHEAD = 30
"""Times a user may create, change or test alerts at once."""
MAX_KEY = 255
BY_OWNER = "by its owner"
TEST = "alert.test"


class HttpAlerts:
    """The handlers of `/v1/alerts`; without a vault for secrets they answer that alerts are off."""

    def __init__(
        self,
        settings: Settings,
        store: AlertStore,
        authenticator: Authenticator,
        clock: Callable[[], int],
        vault: Vault | None,
        evaluator: Evaluator | None,
        deliverer: Deliverer | None,
    ) -> None:
        self._store = store
        self._authenticator = authenticator
        self._clock = clock
        self._vault = vault
        self._evaluator = evaluator
        self._deliverer = deliverer
        self._bounds = alerts.bounds_of(settings)
        self._limit = settings.alerts_per_user
        self._development = settings.alert_development_hosts
        self._rate = settings.alert_changes
        self._changes = Rates(self._rate, CHANGES_AHEAD)
        self._said = False

    def routes(self) -> list[web.RouteDef]:
        """Returns the routes."""
        return [
            web.post("/v1/alerts", self.create),
            web.get("/v1/alerts", self.list),
            web.get("/v1/alerts/{id}", self.get),
            web.patch("/v1/alerts/{id}", self.change),
            web.delete("/v1/alerts/{id}", self.delete),
            web.get("/v1/alerts/{id}/deliveries", self.deliveries),
            web.post("/v1/alerts/{id}/test", self.test),
        ]

    async def create(self, request: web.Request) -> web.Response:
        """`POST /v1/alerts`: creates an alert; only this answer has its signing secret."""
        user, vault = await self._user(request)
        self._count(user)
        raw = await request.read()
        asked = alerts.decode_alert(_object(raw), self._bounds, self._clock())
        check_url(asked.url, self._development)
        key = request.headers.get("Idempotency-Key")
        if key is not None and not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE, f"Idempotency-Key must be 1 to {MAX_KEY} printable ASCII characters"
            )
        secret = new_secret()
        hashed = None if key is None else hashlib.sha256(raw).hexdigest()
        new = _new(asked, vault.encrypt(secret), key=key, request_hash=hashed)
        row, created = await self._store.create(user, new, self._limit, self._clock())
        if not created:
            if row.request_hash != hashed:
                raise ProtocolError(
                    ErrorCode.INVALID_MESSAGE,
                    "this Idempotency-Key was used with another body: use a new key for another alert",
                )
            secret = vault.decrypt(row.secret)
        self._changed()
        headers = {"Cache-Control": "no-store", "Location": f"/v1/alerts/{row.id}"}
        return json_response({**described(row), "secret": secret}, status=201, headers=headers)

    async def list(self, request: web.Request) -> web.Response:
        """`GET /v1/alerts?limit&cursor`: a page of the user's alerts, the oldest first."""
        user, _ = await self._user(request)
        limit = limit_of(request.query)
        rows = await self._store.list_of(user, request.query.get("cursor", ""), limit + 1)
        following = rows[limit - 1].id if len(rows) > limit else None
        return paged(request, "alerts", [described(row) for row in rows[:limit]], following)

    async def get(self, request: web.Request) -> web.Response:
        """`GET /v1/alerts/{id}`."""
        user, _ = await self._user(request)
        row = await self._store.get(user, request.match_info["id"])
        return json_response(described(row), headers=NO_STORE)

    async def change(self, request: web.Request) -> web.Response:
        """`PATCH /v1/alerts/{id}`: a JSON merge patch."""
        user, _ = await self._user(request)
        self._count(user)
        patch = _object(await request.read())

        def edit(row: AlertRow) -> Change:
            # An expiry that has passed meanwhile must not make the change fail.
            now = self._clock() if "expires" in patch else 0
            asked = alerts.decode_alert(alerts.merged(written(row), patch), self._bounds, now)
            if asked.url != row.url:
                check_url(asked.url, self._development)
            reason = (row.reason or BY_OWNER) if asked.disabled else None
            watched = alerts.stored_definition(row.source, asked.definition.quiet)
            same = asked.definition == watched and row.disabled is None
            return Change(_new(asked, row.secret, reason=reason), same=same, revive=reason is None)

        row = await self._store.change(user, request.match_info["id"], edit)
        self._changed()
        return json_response(described(row), headers=NO_STORE)

    async def delete(self, request: web.Request) -> web.Response:
        """`DELETE /v1/alerts/{id}`: webhooks that are not sent yet are discarded."""
        user, _ = await self._user(request)
        await self._store.delete(user, request.match_info["id"])
        self._changed()
        return web.Response(status=204)

    async def deliveries(self, request: web.Request) -> web.Response:
        """`GET /v1/alerts/{id}/deliveries?limit&cursor`: a page of webhooks and their answers, the newest first."""
        user, _ = await self._user(request)
        row = await self._store.get(user, request.match_info["id"])
        limit = limit_of(request.query)
        rows = await self._store.deliveries(row.id, request.query.get("cursor", ""), limit + 1)
        following = rows[limit - 1].id if len(rows) > limit else None
        return paged(request, "deliveries", [delivery(each) for each in rows[:limit]], following)

    async def test(self, request: web.Request) -> web.Response:
        """`POST /v1/alerts/{id}/test`: sends a test webhook, without a vendor."""
        user, _ = await self._user(request)
        self._count(user)
        row = await self._store.get(user, request.match_info["id"])
        if row.disabled is not None:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"the alert is disabled, {row.reason}: enable it first")
        now = self._clock()
        event = {"type": TEST, "alertId": row.id, "at": now, **_given(metadata=row.source.get("metadata"))}
        id = await self._store.add_event(row.id, TEST, orjson.dumps(event).decode(), now)
        if self._deliverer is not None:
            self._deliverer.due()
        return json_response({"id": id}, status=202, headers=NO_STORE)

    def _changed(self) -> None:
        """Makes this process read the change at once."""
        if self._evaluator is not None:
            self._evaluator.wake()

    def _count(self, user: str) -> None:
        """Raises ProtocolError when a user changes or tests alerts too often."""
        if (wait := self._changes.wait(user, time.monotonic())) > 0:
            raise ProtocolError(
                ErrorCode.RATE_LIMITED,
                f"alerts may be created, changed and tested {CHANGES_AHEAD} times at once, then every "
                f"{1 / self._rate:g} s; try again in {wait:.0f} s",
                retry_after_ms=max(1, round(wait * 1000)),
            )

    async def _user(self, request: web.Request) -> tuple[str, Vault]:
        if self._vault is None:
            if not self._said:
                self._said = True
                log.warning("a client requested alerts, which are off: set STREAMER_ALERT_KEY to turn them on")
            raise ProtocolError(ErrorCode.FORBIDDEN, "alerts are off: set STREAMER_ALERT_KEY")
        return (await identify(request, self._authenticator)).clerk_id, self._vault


def described(row: AlertRow) -> dict[str, Any]:
    """Returns an alert as its owner sees it."""
    seen = written(row)
    seen.pop("disabled", None)
    return {
        "id": row.id,
        **seen,
        "createdAt": row.created,
        "updatedAt": row.updated,
        **_given(
            startedAt=row.started,
            failingSince=row.failing,
            disabled=None if row.disabled is None else {"at": row.disabled, "reason": row.reason},
        ),
    }


def written(row: AlertRow) -> dict[str, Any]:
    """Returns an alert in the form of a request, for a merge patch."""
    disabled = None if row.disabled is None else True
    return {**row.source, "url": row.url, "quiet": row.quiet, **_given(expires=row.expires, disabled=disabled)}


def delivery(row: DeliveryRow) -> dict[str, Any]:
    """Returns a webhook as the alert's owner sees it."""
    state = "delivered" if row.delivered is not None else "given up" if row.gave_up is not None else "waiting"
    seen = {"id": row.id, "type": row.kind, "at": row.at, "state": state, "attempts": row.log}
    return seen | _given(vendorId=row.vendor_id or None, nextAttempt=row.next)


def _new(
    asked: alerts.Request,
    secret: bytes,
    *,
    key: str | None = None,
    request_hash: str | None = None,
    reason: str | None = None,
) -> NewAlert:
    return NewAlert(
        source=asked.source,
        quiet=asked.definition.quiet,
        url=asked.url,
        host=host_of(asked.url),
        secret=secret,
        expires=asked.expires,
        reason=reason or (BY_OWNER if asked.disabled else None),
        key=key,
        request_hash=request_hash,
    )


def _given(**members: Any) -> dict[str, Any]:
    """Returns the members that are not None."""
    return {name: value for name, value in members.items() if value is not None}


def _object(raw: bytes) -> dict[str, Any]:
    body = decode_json(raw, "the body")
    if type(body) is not dict:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"the body must be a JSON object, not {shown(body)}")
    return body
