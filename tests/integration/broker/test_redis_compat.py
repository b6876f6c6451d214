"""The undocumented part of redis-py: if it changes, outdated writes could still be delivered."""

from __future__ import annotations

import asyncio

from redis.asyncio import Connection

from streamer.broker.redis_compat import reset


async def test_a_reset_connection_sends_nothing_more() -> None:
    """An old position delivered after its timeout would replace a newer one on every map."""
    received = bytearray()
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                received.extend(data)
            ended.set_result(None)
        except ConnectionError as error:
            ended.set_result(error)
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = Connection(host="127.0.0.1", port=port, protocol=2, driver_info=None)
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        assert connection._writer is not None, "redis-py keeps its writer elsewhere now: redis_compat must change"
        connection._writer.write(b"late")
        reset(connection)
        assert connection._writer is None
        assert isinstance(await asyncio.wait_for(ended, 5), ConnectionResetError), "closed in order, not reset"
        reset(connection)  # a second call does no harm
