"""Limits on clients' requests. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from streamer.settings import Settings


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of requests, in metres, counts and milliseconds."""

    max_batch: int = 500
    future_tolerance_ms: int = 60_000
    max_age_ms: int = 366 * 86_400_000
    max_watches: int = 32
    max_radius: float = 100_000.0
    max_extent: float = 200_000.0
    max_vertices: int = 200
    max_listed: int = 200

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """Returns what the settings allow."""
        return cls(
            max_batch=settings.max_batch,
            future_tolerance_ms=int(settings.future_tolerance * 1000),
            max_age_ms=int(settings.max_age * 86_400_000),
            max_watches=settings.max_watches,
            max_radius=settings.max_radius,
            max_extent=settings.max_extent,
            max_vertices=settings.max_vertices,
            max_listed=settings.max_listed,
        )
