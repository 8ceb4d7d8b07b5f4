"""The ceiling of a Python HTTP server: uvloop and httptools, a constant answer, nothing else.

python bare_server.py ANSWER_BYTES        prints the port that it got, then serves until killed
"""

import asyncio
import sys
from typing import cast

import httptools
import uvloop


class Connection(asyncio.Protocol):
    """Parses each request and answers it with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop: no subclass of it
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(self._answer)


async def main(answer_bytes: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % answer_bytes
    answer = head + bytes(answer_bytes)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(answer), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
