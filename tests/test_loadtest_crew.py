"""A process of load that takes no orders any more: what it was asked is answered by its end."""

import asyncio

import pytest
import uvloop

from efserve.errors import MeasurementFailed
from efserve.loadtest.crew import Child


def test_an_order_after_the_pipe_has_closed_is_answered_by_the_death() -> None:
    async def main() -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("sleep", "1000", stdin=pipe, stdout=pipe)
        child = Child(1, process)
        assert process.stdin is not None
        process.stdin.close()
        await process.stdin.wait_closed()
        child.tell("close")
        asked = asyncio.ensure_future(child.ask("cut"))
        process.kill()
        with pytest.raises(MeasurementFailed, match="process 1 of the load generator was killed by SIGKILL"):
            await asked
        with pytest.raises(MeasurementFailed, match="SIGKILL"):
            await child.ask("cut")
        await child.end()

    uvloop.run(main())
