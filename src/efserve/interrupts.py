"""Ctrl-C for commands that measure: the first asks the work to end, the second ends it."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from efserve.errors import EfserveError

_Result = TypeVar("_Result")


def run(work: Callable[[asyncio.Event], Coroutine[Any, Any, _Result]], words: str) -> _Result | None:
    """What `work` returns, run on uvloop; None when it had nothing to show after a Ctrl-C.

    The first Ctrl-C sets the event that `work` was given and prints `words`; a second cancels it.
    """
    import uvloop

    interrupted = False

    async def main() -> _Result:
        nonlocal interrupted
        stop, task = asyncio.Event(), asyncio.current_task()
        assert task is not None

        def on_interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                task.cancel()
                return
            interrupted = True
            stop.set()
            click.echo(f"\n{words}; Ctrl-C once more quits at once.", err=True)

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, on_interrupt)
        return await work(stop)

    try:
        return uvloop.run(main())
    except (asyncio.CancelledError, KeyboardInterrupt):
        return None
    except EfserveError as exc:
        if not interrupted:
            raise
        click.echo(f"Error: {exc}", err=True)
        return None
