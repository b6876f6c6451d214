"""What stands before the servers: each connection goes to the next of them that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

from tests.network import Proxy


class Balancer(Proxy):
    """Carries TCP to one of several servers in turn, and to another one where it is refused."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(urls[0])
        self._targets = [(urlsplit(url).hostname, urlsplit(url).port) for url in urls]
        self._turn = 0

    async def reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in self._targets:
            self._turn += 1
            try:
                return await asyncio.open_connection(*self._targets[self._turn % len(self._targets)])
            except OSError:
                continue
        raise ConnectionRefusedError("no server takes connections")
