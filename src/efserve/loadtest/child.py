"""A process of load: `python -m efserve.loadtest.child` takes orders from its standard input and answers each.

See `crew.py` for who gives them. It ends when its standard input does.
"""

import asyncio
import gc
import os
import pickle
import sys
import time
from typing import Any

import uvloop

from efserve.loadtest.crew import LENGTH
from efserve.loadtest.job import LoadJob, Loop, OpenJob, make_loop
from efserve.loadtest.limits import allow_connections


class _Worker:
    """Carries out orders, one load at a time."""

    def __init__(self, output: asyncio.WriteTransport) -> None:
        self._output = output
        self._job: LoadJob | None = None
        self._loop: Loop | None = None

    async def carry_out(self, order: str, value: Any) -> None:
        """Carry out an order and answer it; waiting for the end of a load keeps no other order waiting."""
        answer: object = None
        if order == "prepare":
            self._prepare(value)
        elif order == "start":
            self._start(value)
        elif self._loop is not None:
            if order == "close":
                self._loop.close()
                return
            if order == "cut":
                answer = self._loop.cut()
            elif order == "finish":
                await self._loop.finished.wait()
            elif order == "stop":
                await self._loop.stop()
        data = pickle.dumps((order, answer), pickle.HIGHEST_PROTOCOL)
        self._output.write(LENGTH.pack(len(data)) + data)

    def _prepare(self, job: LoadJob) -> None:
        allow_connections(job.work.connections)
        self._job = job

    def _start(self, begin_ns: int) -> None:
        assert self._job is not None, "start before prepare"
        self._loop = make_loop(self._job, begin_ns)
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        if isinstance(self._job.work, OpenJob):  # it knows when to send the first
            self._loop.start()
            return
        delay_s = (begin_ns - time.monotonic_ns()) / 1e9
        asyncio.get_running_loop().call_later(max(delay_s, 0.0), self._loop.start)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    output, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    worker = _Worker(output)
    try:
        async with asyncio.TaskGroup() as orders:  # a failed order ends the process, which its parent notices
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                order, value = pickle.loads(await reader.readexactly(length))  # from our parent
                orders.create_task(worker.carry_out(order, value))
    except* asyncio.IncompleteReadError:
        pass  # the parent is gone


if __name__ == "__main__":
    uvloop.run(_serve())
