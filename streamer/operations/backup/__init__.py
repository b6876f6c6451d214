"""Backups: pg_dump's custom format with a manifest; restored into empty databases only; verified by restoring."""

from streamer.operations.backup.archive import backup, compared, prove, restore
from streamer.operations.backup.files import (
    Backups,
    Counted,
    Found,
    Manifest,
    found,
    manifest_of,
    newest,
    proof_of,
    remove_old,
)

__all__ = [
    "Backups",
    "Counted",
    "Found",
    "Manifest",
    "backup",
    "compared",
    "found",
    "manifest_of",
    "newest",
    "proof_of",
    "prove",
    "remove_old",
    "restore",
]
