"""The definition of the schema: the five tables of the backend's Prisma models, and the additions.

Names of tables, columns and constraints are Prisma's own, so that a Prisma client reads and writes the same database.
Timestamps are TIMESTAMP(3) without a zone, holding UTC. `id` and "updatedAt" have no default in the database: the
writer supplies them. Added are the indexes `idx_…`, the checks, the nullable columns "locatedAt" and "deletedAt",
the table of the audit, and those of alerts.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import (
    BIGINT,
    SMALLINT,
    CheckConstraint,
    ForeignKeyConstraint,
    Identity,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import BYTEA, DOUBLE_PRECISION, JSONB, TEXT, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Text = Annotated[str, mapped_column(TEXT())]
Time = Annotated[datetime, mapped_column(TIMESTAMP(precision=3))]
Degrees = Annotated[float, mapped_column(DOUBLE_PRECISION())]

NOW = text("CURRENT_TIMESTAMP")

# NaN sorts above every number in PostgreSQL, so BETWEEN refuses it too.
LAT_CHECK = '"lat" BETWEEN -90 AND 90'
LONG_CHECK = '"long" BETWEEN -180 AND 180'

UNDONE = text('"nextAttempt" IS NOT NULL')


class Base(DeclarativeBase):
    """The base of all models, with the MetaData that Alembic compares the database with."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )


def _cascading(column: str, references: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint([column], [references], ondelete="CASCADE", onupdate="CASCADE")


class User(Base):
    """A user who can sign in; `clerk_id` is the `sub` of the token. `deleted_at` set: deleted, but kept."""

    __tablename__ = "users"
    __table_args__ = (
        PrimaryKeyConstraint("id"),
        Index("users_clerkId_key", "clerkId", unique=True),
        Index("users_email_key", "email", unique=True),
        Index("idx_users_clerk_id", "clerkId"),
        Index("idx_users_email", "email"),
    )

    id: Mapped[Text]
    clerk_id: Mapped[Text] = mapped_column("clerkId")
    email: Mapped[Text]
    first_name: Mapped[Text | None] = mapped_column("firstName")
    last_name: Mapped[Text | None] = mapped_column("lastName")
    created_at: Mapped[Time] = mapped_column("createdAt", server_default=NOW)
    updated_at: Mapped[Time] = mapped_column("updatedAt")
    deleted_at: Mapped[Time | None] = mapped_column("deletedAt")


class Subscription(Base):
    """A user's subscription: its provider, plan and period."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        PrimaryKeyConstraint("id"),
        _cascading("userId", "users.id"),
        CheckConstraint('"endDate" >= "startDate"', name="endDate"),
        Index("idx_subscriptions_user_id", "userId"),
        Index("idx_subscriptions_status", "status"),
        Index("idx_subscriptions_end_date", "endDate"),
    )

    id: Mapped[Text]
    user_id: Mapped[Text] = mapped_column("userId")
    provider: Mapped[Text]
    product_id: Mapped[Text] = mapped_column("productId")
    status: Mapped[Text]
    start_date: Mapped[Time] = mapped_column("startDate")
    end_date: Mapped[Time | None] = mapped_column("endDate")
    created_at: Mapped[Time] = mapped_column("createdAt", server_default=NOW)
    updated_at: Mapped[Time] = mapped_column("updatedAt")


class Vendor(Base):
    """A vendor and its position: `lat`, `long` are degrees, `located_at` is the timestamp of that position.

    If the timestamp was ahead of the clock, `located_at` is the time of arrival. `deleted_at` set: deleted, but kept.
    """

    __tablename__ = "vendors"
    __table_args__ = (
        PrimaryKeyConstraint("id"),
        _cascading("userId", "users.id"),
        CheckConstraint(LAT_CHECK, name="lat"),
        CheckConstraint(LONG_CHECK, name="long"),
        Index("idx_vendors_user_id", "userId"),
        # BRIN: a B-tree index would make every update of a position write all indexes (migration 0006).
        Index("idx_vendors_location", "lat", "long", postgresql_using="brin"),
        Index("idx_vendors_created_at", "createdAt"),
        Index("idx_vendors_name_search", text('streamer_search_words("name")'), postgresql_using="gin"),
    )

    id: Mapped[Text]
    name: Mapped[Text]
    description: Mapped[Text | None]
    phone: Mapped[Text | None]
    email: Mapped[Text | None]
    website: Mapped[Text | None]
    open: Mapped[bool] = mapped_column(server_default=text("true"))
    primary_image: Mapped[Text | None] = mapped_column("primaryImage")
    lat: Mapped[Degrees | None]
    long: Mapped[Degrees | None]
    user_id: Mapped[Text] = mapped_column("userId")
    created_at: Mapped[Time] = mapped_column("createdAt", server_default=NOW)
    updated_at: Mapped[Time] = mapped_column("updatedAt")
    located_at: Mapped[Time | None] = mapped_column("locatedAt")
    deleted_at: Mapped[Time | None] = mapped_column("deletedAt")
    hidden: Mapped[bool | None]


class Location(Base):
    """One stored ping. The id begins with its time, so a range of ids is a span of time: a day is a partition."""

    __tablename__ = "locations"
    __table_args__ = (
        PrimaryKeyConstraint("id"),
        _cascading("vendorId", "vendors.id"),
        CheckConstraint(LAT_CHECK, name="lat"),
        CheckConstraint(LONG_CHECK, name="long"),
        Index("idx_locations_vendor_id", "vendorId", "timestamp"),
        Index("idx_locations_timestamp", "timestamp"),
        {"postgresql_partition_by": 'RANGE ("id")'},
    )

    id: Mapped[str] = mapped_column(TEXT(collation="C"))
    vendor_id: Mapped[Text] = mapped_column("vendorId")
    lat: Mapped[Degrees]
    long: Mapped[Degrees]
    timestamp: Mapped[Time] = mapped_column(server_default=NOW)


class Integration(Base):
    """The id of one of our objects in another service."""

    __tablename__ = "integrations"
    __table_args__ = (
        PrimaryKeyConstraint("id"),
        Index("integrations_service_externalId_key", "service", "externalId", unique=True),
        Index("idx_integrations_service", "service"),
        Index("idx_integrations_external_id", "externalId"),
    )

    id: Mapped[Text]
    service: Mapped[Text]
    external_id: Mapped[Text] = mapped_column("externalId")
    internal_id: Mapped[Text] = mapped_column("internalId")
    # `metadata` is SQLAlchemy's own name on a model
    details: Mapped[Any | None] = mapped_column("metadata", JSONB())
    created_at: Mapped[Time] = mapped_column("createdAt", server_default=NOW)
    updated_at: Mapped[Time] = mapped_column("updatedAt")


class AuditEntry(Base):
    """One change of a user, vendor, subscription or integration, written by a trigger (storage/audit.py)."""

    __tablename__ = "streamer_audit"
    __table_args__ = (
        PrimaryKeyConstraint("id"),
        Index("idx_streamer_audit_at", "at"),
        Index("idx_streamer_audit_row_id", "rowId", "at"),
    )

    id: Mapped[int] = mapped_column(BIGINT(), Identity(always=True))
    at: Mapped[Time]
    table: Mapped[Text]
    row_id: Mapped[Text | None] = mapped_column("rowId")
    action: Mapped[Text]
    before: Mapped[Any | None] = mapped_column(JSONB())
    after: Mapped[Any | None] = mapped_column(JSONB())
    user: Mapped[Text]
    actor: Mapped[Text | None]
    application: Mapped[Text | None]
    address: Mapped[Text | None]
    transaction: Mapped[int] = mapped_column(BIGINT())


class Alert(Base):
    """A user's alert. The secret is encrypted; `deleted_at` set: deleted, and removed by `db prune`.

    Processes share alerts by `slot`; `revision` counts the changes of the alert.
    """

    __tablename__ = "streamer_alerts"
    __table_args__ = (
        PrimaryKeyConstraint("id"),
        _cascading("userId", "users.id"),
        Index("idx_streamer_alerts_user_id", "userId", "id"),
        Index("streamer_alerts_userId_idempotencyKey_key", "userId", "idempotencyKey", unique=True),
        Index("idx_streamer_alerts_updated_at", "updatedAt"),
    )

    id: Mapped[Text]
    user_id: Mapped[Text] = mapped_column("userId")
    slot: Mapped[int] = mapped_column(SMALLINT())
    revision: Mapped[int] = mapped_column(BIGINT())
    definition: Mapped[Any] = mapped_column(JSONB())
    quiet: Mapped[int]
    url: Mapped[Text]
    host: Mapped[Text]
    secret: Mapped[bytes] = mapped_column(BYTEA())
    expires_at: Mapped[Time | None] = mapped_column("expiresAt")
    started_at: Mapped[Time | None] = mapped_column("startedAt")
    failing_since: Mapped[Time | None] = mapped_column("failingSince")
    disabled_at: Mapped[Time | None] = mapped_column("disabledAt")
    disabled_reason: Mapped[Text | None] = mapped_column("disabledReason")
    deleted_at: Mapped[Time | None] = mapped_column("deletedAt")
    idempotency_key: Mapped[Text | None] = mapped_column("idempotencyKey")
    request_hash: Mapped[Text | None] = mapped_column("requestHash")
    created_at: Mapped[Time] = mapped_column("createdAt", server_default=NOW)
    updated_at: Mapped[Time] = mapped_column("updatedAt")


class AlertState(Base):
    """The last evaluated state of a vendor in an alert; each change increments `version`."""

    __tablename__ = "streamer_alert_states"
    __table_args__ = (
        PrimaryKeyConstraint("alertId", "vendorId"),
        _cascading("alertId", "streamer_alerts.id"),
        Index("idx_streamer_alert_states_vendor_id", "vendorId"),
    )

    alert_id: Mapped[Text] = mapped_column("alertId")
    vendor_id: Mapped[Text] = mapped_column("vendorId")
    version: Mapped[int] = mapped_column(BIGINT())
    inside: Mapped[bool]
    open: Mapped[bool]
    online: Mapped[bool]
    told: Mapped[Any] = mapped_column(JSONB())
    card: Mapped[Any] = mapped_column(JSONB())
    event_at: Mapped[int] = mapped_column("eventAt", BIGINT())
    quiet_until: Mapped[Time] = mapped_column("quietUntil")


class AlertEvent(Base):
    """One webhook; the id is its `webhook-id` and begins with its time. `next_attempt` unset: it is done."""

    __tablename__ = "streamer_alert_events"
    __table_args__ = (
        PrimaryKeyConstraint("id"),
        _cascading("alertId", "streamer_alerts.id"),
        Index("idx_streamer_alert_events_alert_id", "alertId", "id"),
        Index("idx_streamer_alert_events_vendor_id", "vendorId"),
        Index("idx_streamer_alert_events_next_attempt", "nextAttempt", postgresql_where=UNDONE),
        Index("idx_streamer_alert_events_order", "alertId", "vendorId", "id", postgresql_where=UNDONE),
        {"postgresql_partition_by": 'RANGE ("id")'},
    )

    id: Mapped[str] = mapped_column(TEXT(collation="C"))
    alert_id: Mapped[Text] = mapped_column("alertId")
    vendor_id: Mapped[Text] = mapped_column("vendorId")
    type: Mapped[Text]
    body: Mapped[Text]
    at: Mapped[Time]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    next_attempt: Mapped[Time | None] = mapped_column("nextAttempt")
    delivered_at: Mapped[Time | None] = mapped_column("deliveredAt")
    gave_up_at: Mapped[Time | None] = mapped_column("gaveUpAt")
    log: Mapped[Any] = mapped_column(JSONB(), server_default=text("'[]'"))


class AlertProcess(Base):
    """The last heartbeat of a server process that evaluates alerts."""

    __tablename__ = "streamer_alert_processes"
    __table_args__ = (PrimaryKeyConstraint("id"),)

    id: Mapped[Text]
    seen_at: Mapped[Time] = mapped_column("seenAt")
