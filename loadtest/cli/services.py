"""What a development server left in its data folder: where its parts listen, and its token secret."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from loadtest.errors import WrongUse


@dataclass(frozen=True, slots=True)
class Services:
    """The URLs of a server and what it stands on; `secret` signs its tokens; None is not known."""

    http: str | None = None
    database: str | None = None
    redis: str | None = None
    secret: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Services:
        """What `services.json` and `jwt-secret` in a data folder say."""
        path = folder / "services.json"
        try:
            found = orjson.loads(path.read_bytes())
            http, database, redis = found["http"], found["database"], found["redis"]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as bad:
            raise WrongUse(
                f"{path} can't be used ({bad!r}); is this the data folder of a running `streamer dev`?"
            ) from None
        secret = folder / "jwt-secret"
        return cls(http, database, redis, secret.read_text(encoding="utf-8").strip() if secret.exists() else None)
