"""A TCP load balancer: each connection goes to the server with the fewest, or to another if that refuses it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

from tests.support.proxy import Proxy

Address = tuple[str | None, int | None]


class Balancer(Proxy):
    """Forwards TCP connections to several servers."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(urls[0])
        self._targets: list[Address] = [(urlsplit(url).hostname, urlsplit(url).port) for url in urls]

    async def reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        serving = {target: len(writers) for target, writers in self._by_target().items()}
        for target in sorted(self._targets, key=lambda target: serving[target]):
            try:
                return await asyncio.open_connection(*target)
            except OSError:
                continue
        raise ConnectionRefusedError("no server takes connections")

    def even(self) -> None:
        """Closes connections of a server that has more than its share; reconnecting clients go to another."""
        by_target = self._by_target()
        share = -(-sum(map(len, by_target.values())) // len(by_target))
        for writers in by_target.values():
            for writer in writers[share:]:
                writer.transport.abort()

    def _by_target(self) -> dict[Address, list[asyncio.StreamWriter]]:
        found: dict[Address, list[asyncio.StreamWriter]] = {target: [] for target in self._targets}
        for writer in self._writers:
            peer = writer.get_extra_info("peername")
            if peer is not None and (peer[0], peer[1]) in found and not writer.is_closing():
                found[peer[0], peer[1]].append(writer)
        return found
