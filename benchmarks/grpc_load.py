"""Many gRPC calls with little work: on one connection, and each on its own."""

import asyncio

from efserve.client.endpoint import GrpcEndpoint
from efserve.client.grpc import Channel, Reply, call_head
from efserve.inference import Body

AT_ONCE = 32


class _Calls:
    """So many ModelInfers on one channel, some under way all the time; `done` is set, or fails with the first."""

    def __init__(self, endpoint: GrpcEndpoint, message: bytes, count: int) -> None:
        self.channel = Channel(lambda: None, lambda _, text: self._fail(text))
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = call_head(endpoint, "ModelInfer")
        self._message = message
        self._to_begin = self._to_end = count

    def begin(self) -> None:
        """One more, if any is left."""
        if self._to_begin:
            self._to_begin -= 1
            stream = self.channel.begin(self._head, Reply(self._take, self._end))
            self.channel.send(stream, self._message, last=True)

    def _take(self, _: Body) -> None:
        """The answer itself is not looked at."""

    def _end(self, status: int, text: str) -> None:
        self._to_end -= 1
        if status:
            self._fail(f"gRPC status {status}: {text}")
        elif not self._to_end and not self.done.done():
            self.done.set_result(None)
        else:
            self.begin()

    def _fail(self, text: str) -> None:
        if not self.done.done():
            self.done.set_exception(AssertionError(text))


async def calls_on_one_connection(url: str, message: bytes, count: int) -> None:
    """So many ModelInfers of one message with its prefix; raises AssertionError for one that fails."""
    endpoint = GrpcEndpoint(url)
    calls = _Calls(endpoint, message, count)
    await asyncio.get_running_loop().create_connection(lambda: calls.channel, endpoint.host, endpoint.port)
    try:
        for _ in range(AT_ONCE):
            calls.begin()
        await calls.done
    finally:
        calls.channel.drop()


async def connections(url: str, message: bytes, count: int) -> None:
    """So many connections with one call each, 8 at a time."""
    left = iter(range(count))

    async def one_after_the_other() -> None:
        for _ in left:
            await calls_on_one_connection(url, message, 1)

    await asyncio.gather(*(one_after_the_other() for _ in range(8)))
