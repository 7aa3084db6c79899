from __future__ import annotations

import asyncio
import socket

from sdengine.serving.http_server import listening_socket


def test_answers_are_sent_at_once() -> None:
    """Accepted connections do not wait for more to send (Nagle), which costs 40 ms an answer."""

    async def nodelay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            own: socket.socket = writer.get_extra_info("socket")
            found.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listening_socket("127.0.0.1", 0) as listening:
            async with await asyncio.start_server(connected, sock=listening):
                _, writer = await asyncio.open_connection(*listening.getsockname())
                value = await found
                writer.close()
                await writer.wait_closed()
                return value

    assert asyncio.run(nodelay()) != 0
