"""The five tables of the Prisma schema, with the documented indexes; locations is partitioned by id, and so by time.

Not migrations but `streamer.storage.partitions.ensure_partitions` creates the partition of a day.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
CREATE TABLE "users" (
    "id" TEXT NOT NULL,
    "clerkId" TEXT NOT NULL,
    "email" TEXT NOT NULL,
    "firstName" TEXT,
    "lastName" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "users_pkey" PRIMARY KEY ("id")
)
""",
    """
CREATE TABLE "subscriptions" (
    "id" TEXT NOT NULL,
    "userId" TEXT NOT NULL,
    "provider" TEXT NOT NULL,
    "productId" TEXT NOT NULL,
    "status" TEXT NOT NULL,
    "startDate" TIMESTAMP(3) NOT NULL,
    "endDate" TIMESTAMP(3),
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "subscriptions_pkey" PRIMARY KEY ("id")
)
""",
    """
CREATE TABLE "vendors" (
    "id" TEXT NOT NULL,
    "name" TEXT NOT NULL,
    "description" TEXT,
    "phone" TEXT,
    "email" TEXT,
    "website" TEXT,
    "open" BOOLEAN NOT NULL DEFAULT true,
    "primaryImage" TEXT,
    "lat" DOUBLE PRECISION,
    "long" DOUBLE PRECISION,
    "userId" TEXT NOT NULL,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "vendors_pkey" PRIMARY KEY ("id")
)
""",
    """
CREATE TABLE "locations" (
    "id" TEXT COLLATE "C" NOT NULL,
    "vendorId" TEXT NOT NULL,
    "lat" DOUBLE PRECISION NOT NULL,
    "long" DOUBLE PRECISION NOT NULL,
    "timestamp" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "locations_pkey" PRIMARY KEY ("id")
) PARTITION BY RANGE ("id")
""",
    """
CREATE TABLE "integrations" (
    "id" TEXT NOT NULL,
    "service" TEXT NOT NULL,
    "externalId" TEXT NOT NULL,
    "internalId" TEXT NOT NULL,
    "metadata" JSONB,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "integrations_pkey" PRIMARY KEY ("id")
)
""",
)

PRISMA_INDEXES = (
    'CREATE UNIQUE INDEX "users_clerkId_key" ON "users"("clerkId")',
    'CREATE UNIQUE INDEX "users_email_key" ON "users"("email")',
    'CREATE UNIQUE INDEX "integrations_service_externalId_key" ON "integrations"("service", "externalId")',
)

DOCUMENTED_INDEXES = (
    'CREATE INDEX "idx_users_clerk_id" ON "users"("clerkId")',
    'CREATE INDEX "idx_users_email" ON "users"("email")',
    'CREATE INDEX "idx_vendors_user_id" ON "vendors"("userId")',
    'CREATE INDEX "idx_vendors_location" ON "vendors"("lat", "long")',
    'CREATE INDEX "idx_vendors_created_at" ON "vendors"("createdAt")',
    'CREATE INDEX "idx_locations_vendor_id" ON "locations"("vendorId", "timestamp")',
    'CREATE INDEX "idx_locations_timestamp" ON "locations"("timestamp")',
    'CREATE INDEX "idx_subscriptions_user_id" ON "subscriptions"("userId")',
    'CREATE INDEX "idx_subscriptions_status" ON "subscriptions"("status")',
    'CREATE INDEX "idx_subscriptions_end_date" ON "subscriptions"("endDate")',
    'CREATE INDEX "idx_integrations_service" ON "integrations"("service")',
    'CREATE INDEX "idx_integrations_external_id" ON "integrations"("externalId")',
)

FOREIGN_KEYS = (
    """
ALTER TABLE "subscriptions" ADD CONSTRAINT "subscriptions_userId_fkey"
    FOREIGN KEY ("userId") REFERENCES "users"("id") ON DELETE CASCADE ON UPDATE CASCADE
""",
    """
ALTER TABLE "vendors" ADD CONSTRAINT "vendors_userId_fkey"
    FOREIGN KEY ("userId") REFERENCES "users"("id") ON DELETE CASCADE ON UPDATE CASCADE
""",
    """
ALTER TABLE "locations" ADD CONSTRAINT "locations_vendorId_fkey"
    FOREIGN KEY ("vendorId") REFERENCES "vendors"("id") ON DELETE CASCADE ON UPDATE CASCADE
""",
)

# For ids that contain no time, and for times without a partition.
DEFAULT_PARTITION = 'CREATE TABLE "locations_default" PARTITION OF "locations" DEFAULT'


def upgrade() -> None:
    for statement in (*TABLES, *PRISMA_INDEXES, *DOCUMENTED_INDEXES, *FOREIGN_KEYS, DEFAULT_PARTITION):
        op.execute(statement)


def downgrade() -> None:
    # The partitions go with their table.
    for table in ("locations", "vendors", "subscriptions", "integrations", "users"):
        op.execute(f'DROP TABLE "{table}"')
