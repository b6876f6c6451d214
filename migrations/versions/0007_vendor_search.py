"""An index for the search of vendors by name: by the beginnings of words, ignoring case and accents."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# `simple` keeps every word unchanged, as names are in any language. Punctuation must not join words.
FUNCTION = r"""
CREATE FUNCTION "streamer_search_words"(name TEXT) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN to_tsvector('pg_catalog.simple'::regconfig, translate(
    regexp_replace(normalize(lower(name), NFKD), U&'[\0300-\036F]', '', 'g'), 'łøđŁØĐ./-_@:', 'lodlod      '
))
"""


def upgrade() -> None:
    op.execute(FUNCTION)
    op.execute('CREATE INDEX "idx_vendors_name_search" ON "vendors" USING gin ("streamer_search_words"("name"))')


def downgrade() -> None:
    op.execute('DROP INDEX "idx_vendors_name_search"')
    op.execute('DROP FUNCTION "streamer_search_words"(TEXT)')
