"""The definition of the schema: the five tables of the backend's Prisma models, and the additions.

Names of tables, columns and constraints are Prisma's own, so that a Prisma client reads and writes the same database.
Timestamps are TIMESTAMP(3) without a zone, holding UTC. `id` and "updatedAt" have no default in the database: the
writer supplies them. Added are the indexes `idx_…`, the checks, the nullable columns "locatedAt" and "deletedAt",
the table of the audit, and those of alerts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import (
    BIGINT,
    BOOLEAN,
    INTEGER,
    SMALLINT,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Identity,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    text,
)
from sqlalchemy.dialects.postgresql import BYTEA, DOUBLE_PRECISION, JSONB, TEXT, TIMESTAMP
from sqlalchemy.types import TypeEngine

NOW = text("CURRENT_TIMESTAMP")

# NaN sorts above every number in PostgreSQL, so BETWEEN refuses it too.
LAT_CHECK = '"lat" BETWEEN -90 AND 90'
LONG_CHECK = '"long" BETWEEN -180 AND 180'

UNDONE = text('"nextAttempt" IS NOT NULL')

METADATA = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)
"""All tables, which Alembic compares the database with."""


def _columns(kind: TypeEngine[Any], *names: str, nullable: bool = False, **more: Any) -> list[Column[Any]]:
    """Returns columns of one type, in the order of their names."""
    return [Column(name, kind, nullable=nullable, **more) for name in names]


_texts, _times = partial(_columns, TEXT()), partial(_columns, TIMESTAMP(precision=3))
_flags, _bigs, _json = partial(_columns, BOOLEAN()), partial(_columns, BIGINT()), partial(_columns, JSONB())


def _cascading(column: str, references: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint([column], [references], ondelete="CASCADE", onupdate="CASCADE")


def _position(*, nullable: bool) -> list[Any]:
    """Returns latitude and longitude in degrees, and their checks."""
    checks = CheckConstraint(LAT_CHECK, name="lat"), CheckConstraint(LONG_CHECK, name="long")
    return [*_columns(DOUBLE_PRECISION(), "lat", "long", nullable=nullable), *checks]


# A user who can sign in; "clerkId" is the `sub` of the token. "deletedAt" set: deleted, but kept.
Table(
    "users",
    METADATA,
    *_texts("id", "clerkId", "email"),
    *_texts("firstName", "lastName", nullable=True),
    *_times("createdAt", server_default=NOW),
    *_times("updatedAt"),
    *_times("deletedAt", nullable=True),
    PrimaryKeyConstraint("id"),
    Index("users_clerkId_key", "clerkId", unique=True),
    Index("users_email_key", "email", unique=True),
    Index("idx_users_clerk_id", "clerkId"),
    Index("idx_users_email", "email"),
)

# A user's subscription: its provider, plan and period.
Table(
    "subscriptions",
    METADATA,
    *_texts("id", "userId", "provider", "productId", "status"),
    *_times("startDate"),
    *_times("endDate", nullable=True),
    *_times("createdAt", server_default=NOW),
    *_times("updatedAt"),
    PrimaryKeyConstraint("id"),
    _cascading("userId", "users.id"),
    CheckConstraint('"endDate" >= "startDate"', name="endDate"),
    Index("idx_subscriptions_user_id", "userId"),
    Index("idx_subscriptions_status", "status"),
    Index("idx_subscriptions_end_date", "endDate"),
)

# A vendor and its position; "locatedAt" is the timestamp of that position, or the time of arrival if the timestamp was
# ahead of the clock. "deletedAt" set: deleted, but kept.
Table(
    "vendors",
    METADATA,
    *_texts("id", "name"),
    *_texts("description", "phone", "email", "website", nullable=True),
    *_flags("open", server_default=text("true")),
    *_texts("primaryImage", nullable=True),
    *_position(nullable=True),
    *_texts("userId"),
    *_times("createdAt", server_default=NOW),
    *_times("updatedAt"),
    *_times("locatedAt", "deletedAt", nullable=True),
    *_flags("hidden", nullable=True),
    PrimaryKeyConstraint("id"),
    _cascading("userId", "users.id"),
    Index("idx_vendors_user_id", "userId"),
    # BRIN: a B-tree index would make every update of a position write all indexes (migration 0006).
    Index("idx_vendors_location", "lat", "long", postgresql_using="brin"),
    Index("idx_vendors_created_at", "createdAt"),
    Index("idx_vendors_name_search", text('streamer_search_words("name")'), postgresql_using="gin"),
)

# One stored ping. The id begins with its time, so a range of ids is a span of time: a day is a partition.
Table(
    "locations",
    METADATA,
    *_columns(TEXT(collation="C"), "id"),
    *_texts("vendorId"),
    *_position(nullable=False),
    *_times("timestamp", server_default=NOW),
    PrimaryKeyConstraint("id"),
    _cascading("vendorId", "vendors.id"),
    Index("idx_locations_vendor_id", "vendorId", "timestamp"),
    Index("idx_locations_timestamp", "timestamp"),
    postgresql_partition_by='RANGE ("id")',
)

# The id of one of our objects in another service.
Table(
    "integrations",
    METADATA,
    *_texts("id", "service", "externalId", "internalId"),
    *_json("metadata", nullable=True),
    *_times("createdAt", server_default=NOW),
    *_times("updatedAt"),
    PrimaryKeyConstraint("id"),
    Index("integrations_service_externalId_key", "service", "externalId", unique=True),
    Index("idx_integrations_service", "service"),
    Index("idx_integrations_external_id", "externalId"),
)

# One change of a user, vendor, subscription or integration, written by a trigger (storage/audit.py).
Table(
    "streamer_audit",
    METADATA,
    Column("id", BIGINT(), Identity(always=True), nullable=False),
    *_times("at"),
    *_texts("table"),
    *_texts("rowId", nullable=True),
    *_texts("action"),
    *_json("before", "after", nullable=True),
    *_texts("user"),
    *_texts("actor", "application", "address", nullable=True),
    *_bigs("transaction"),
    PrimaryKeyConstraint("id"),
    Index("idx_streamer_audit_at", "at"),
    Index("idx_streamer_audit_row_id", "rowId", "at"),
)

# A user's alert. The secret is encrypted; "deletedAt" set: deleted, and removed by `db prune`. Processes share alerts
# by "slot"; "revision" counts the changes of the alert.
Table(
    "streamer_alerts",
    METADATA,
    *_texts("id", "userId"),
    *_columns(SMALLINT(), "slot"),
    *_bigs("revision"),
    *_json("definition"),
    *_columns(INTEGER(), "quiet"),
    *_texts("url", "host"),
    *_columns(BYTEA(), "secret"),
    *_times("expiresAt", "startedAt", "failingSince", "disabledAt", nullable=True),
    *_texts("disabledReason", nullable=True),
    *_times("deletedAt", nullable=True),
    *_texts("idempotencyKey", "requestHash", nullable=True),
    *_times("createdAt", server_default=NOW),
    *_times("updatedAt"),
    PrimaryKeyConstraint("id"),
    _cascading("userId", "users.id"),
    Index("idx_streamer_alerts_user_id", "userId", "id"),
    Index("streamer_alerts_userId_idempotencyKey_key", "userId", "idempotencyKey", unique=True),
    Index("idx_streamer_alerts_updated_at", "updatedAt"),
)

# The last evaluated state of a vendor in an alert; each change increments "version".
Table(
    "streamer_alert_states",
    METADATA,
    *_texts("alertId", "vendorId"),
    *_bigs("version"),
    *_flags("inside", "open", "online"),
    *_json("told", "card"),
    *_bigs("eventAt"),
    *_times("quietUntil"),
    PrimaryKeyConstraint("alertId", "vendorId"),
    _cascading("alertId", "streamer_alerts.id"),
    Index("idx_streamer_alert_states_vendor_id", "vendorId"),
)

# One webhook; the id is its `webhook-id` and begins with its time. "nextAttempt" unset: it is done.
Table(
    "streamer_alert_events",
    METADATA,
    *_columns(TEXT(collation="C"), "id"),
    *_texts("alertId", "vendorId", "type", "body"),
    *_times("at"),
    *_columns(INTEGER(), "attempts", server_default=text("0")),
    *_times("nextAttempt", "deliveredAt", "gaveUpAt", nullable=True),
    *_json("log", server_default=text("'[]'")),
    PrimaryKeyConstraint("id"),
    _cascading("alertId", "streamer_alerts.id"),
    Index("idx_streamer_alert_events_alert_id", "alertId", "id"),
    Index("idx_streamer_alert_events_vendor_id", "vendorId"),
    Index("idx_streamer_alert_events_next_attempt", "nextAttempt", postgresql_where=UNDONE),
    Index("idx_streamer_alert_events_order", "alertId", "vendorId", "id", postgresql_where=UNDONE),
    postgresql_partition_by='RANGE ("id")',
)

# The last heartbeat of a server process that evaluates alerts.
Table("streamer_alert_processes", METADATA, *_texts("id"), *_times("seenAt"), PrimaryKeyConstraint("id"))
