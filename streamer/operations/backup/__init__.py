"""Backups: pg_dump's custom format with a manifest; restored into empty databases only; verified by restoring."""
