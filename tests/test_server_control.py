"""Control of a repository whose requests name anything and whose file system may raise anything."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from efserve.errors import LoadFailed
from efserve.server.catalog import Catalog
from efserve.server.control import RepositoryControl
from efserve.server.options import ServeConfig
from efserve.server.shared import Shared

DEADLINE_S = 30.0


def locks() -> int:
    """Those that exist in this process."""
    return sum(type(each) is asyncio.Lock for each in gc.get_objects())


def test_names_that_no_repository_holds_leave_nothing_behind(tmp_path: Path) -> None:
    async def whole() -> None:
        options = ServeConfig(model_repository=(tmp_path,), model_control_mode="explicit")
        control = RepositoryControl(Catalog(), options, Shared())
        control.find()
        before = locks()
        for number in range(100):
            with pytest.raises(LoadFailed, match=f"'unknown-{number}' is in no model repository"):
                await control.load(f"unknown-{number}")
            await control.unload(f"unknown-{number}")
        assert locks() == before
        await control.stop()

    asyncio.run(whole())


class FaultyFolder(type(Path())):  # type: ignore[misc]  # whose class the system decides
    """A folder of which the third look raises what no file system should; the fourth is told."""

    __slots__ = ("looks", "on_fourth")
    looks: Iterator[int]
    on_fourth: Callable[[], object]

    def is_dir(self) -> bool:
        look = next(self.looks)
        if look == 3:
            raise RuntimeError("no such look")
        if look == 4:
            self.on_fourth()
        return True


def test_polling_goes_on_whatever_one_look_met(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def whole() -> None:
        looked, loop = asyncio.Event(), asyncio.get_running_loop()
        folder = FaultyFolder(tmp_path)
        folder.looks, folder.on_fourth = count(), lambda: loop.call_soon_threadsafe(looked.set)
        options = ServeConfig(model_repository=(folder,), model_control_mode="poll", repository_poll_secs=0.01)
        control = RepositoryControl(Catalog(), options, Shared())
        control.find()
        await control.start()
        await asyncio.wait_for(looked.wait(), DEADLINE_S)
        await control.stop()

    asyncio.run(whole())
    assert caplog.messages == ["the model repository could not be polled: RuntimeError: no such look"]
