"""Whether the server calls itself ready: what is measured on one that isn't whole is not what it costs."""

from __future__ import annotations

import aiohttp

from loadtest.clients.target import Target
from loadtest.errors import RunFailed

TIMEOUT = 10.0
MOST_QUOTED = 500


async def unready(target: Target) -> str | None:
    """What `/readyz` complains of, None when the server is ready; RunFailed when it does not answer."""
    url = f"{'https' if target.tls else 'http'}://{target.authority}/readyz"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status == 200:
                return None
            return f"{answer.status}: {(await answer.text(errors='replace'))[:MOST_QUOTED].strip()}"
    except (aiohttp.ClientError, OSError, TimeoutError) as failed:
        raise RunFailed(f"{url} does not answer: {failed!r}; is the server up?") from None
