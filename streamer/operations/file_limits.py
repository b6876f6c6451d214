"""The limit on file descriptors: raised at the start, and never exceeded by connections."""

from __future__ import annotations

import sys

import structlog

from streamer.errors import SettingsError
from streamer.settings import Settings

log = structlog.get_logger()

RESERVE = 256
"""Descriptors kept for PostgreSQL, Redis, JWKS, logs, and connections that are being answered with 503."""


def reserved(settings: Settings) -> int:
    """Returns how many descriptors a process needs beside its clients' connections."""
    return RESERVE + settings.pool_size


def fit_to_descriptors(settings: Settings) -> Settings:
    """Raises the soft limit as far as needed; returns settings whose `max_connections` fits into the limit.

    A server without descriptors can't even answer 503. Raises SettingsError if the limit leaves no room for clients.
    """
    if sys.platform == "win32":
        return settings
    import resource

    reserve = reserved(settings)
    needed = settings.max_connections + reserve
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return settings
    if soft <= reserve:
        raise SettingsError(
            f"the limit on file descriptors is {soft}, and {reserve} are needed besides the clients: raise it "
            "(LimitNOFILE of systemd, ulimits of Compose, ulimit -n)"
        )
    log.warning(
        "STREAMER_MAX_CONNECTIONS is lowered, as the limit on file descriptors is too low: raise LimitNOFILE",
        limit=soft,
        max_connections=soft - reserve,
        configured=settings.max_connections,
    )
    return settings.model_copy(update={"max_connections": soft - reserve})
