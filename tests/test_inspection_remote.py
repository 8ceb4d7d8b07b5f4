"""The models of a running server that is not efserve."""

import asyncio

from efserve.inspection.remote import ModelsJob, ServerModels
from v2_server import Behaviour, running


def test_a_server_that_tells_no_placements_shows_its_index_alone() -> None:
    async def whole() -> None:
        async with running(Behaviour()) as url:
            broken, echo = await ServerModels(ModelsJob(url=url)).index()
            assert (broken.state, broken.reason) == ("UNAVAILABLE", "on purpose")
            assert (echo.name, echo.version, echo.placements) == ("echo", "1", [])

    asyncio.run(whole())
