"""Ctrl-C: once, twice, and with nothing to show."""

import asyncio
import signal

import pytest

from efserve.errors import MeasurementFailed
from efserve.interrupts import run


def test_without_ctrl_c_the_result_comes(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(stop: asyncio.Event) -> int:
        return 7

    assert run(work, "It ends") == 7
    assert capsys.readouterr() == ("", "")


def test_the_first_asks_the_work_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(stop: asyncio.Event) -> str:
        signal.raise_signal(signal.SIGINT)
        await stop.wait()
        return "as far as it got"

    assert run(work, "It ends") == "as far as it got"
    assert capsys.readouterr().err == "\nIt ends; Ctrl-C once more quits at once.\n"


def test_the_second_ends_it() -> None:
    async def work(stop: asyncio.Event) -> None:
        signal.raise_signal(signal.SIGINT)
        await stop.wait()
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    assert run(work, "It ends") is None


def test_work_that_had_nothing_to_show_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(stop: asyncio.Event) -> None:
        signal.raise_signal(signal.SIGINT)
        await stop.wait()
        raise MeasurementFailed("nothing was measured")

    assert run(work, "It ends") is None
    assert capsys.readouterr().err.endswith("Error: nothing was measured\n")


def test_errors_without_ctrl_c_are_those_of_the_command() -> None:
    async def work(stop: asyncio.Event) -> None:
        raise MeasurementFailed("it broke")

    with pytest.raises(MeasurementFailed, match="it broke"):
        run(work, "It ends")
