"""Watches the resident memory of workers that have a memory limit on the CPU, and says when one goes beyond it.

It only reports: the limit counts shared pages and the library as well, a worker that is ended takes requests of others
along, and who wants a hard limit has the kernel's control groups. On a GPU, MPS enforces the limit itself.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from efserve.frontend.service import Placement

log = logging.getLogger(__name__)

PERIOD_S = 1.0


class MemoryWatch:
    """One timer for all workers. Tells each crossing once; a worker that has come back may cross again."""

    def __init__(self, placements: Callable[[], Iterable[Placement]]) -> None:
        self._placements = placements
        self._beyond: set[int] = set()  # pids

    async def run(self) -> None:
        """Looks every second, until it is cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            for place in self.look():
                log.warning(
                    "model=%s version=%s pid=%d uses %.0f MiB of memory, beyond its limit of %.0f MiB",
                    *(place.model, place.version, place.pid),
                    *(place.rss_bytes / 2**20, place.memory_limit_bytes / 2**20),
                )

    def look(self) -> list[Placement]:
        """The placements that have gone beyond their limit since the last look."""
        beyond = [place for place in self._placements() if place.is_beyond_memory]
        crossed = [place for place in beyond if place.pid not in self._beyond]
        self._beyond = {place.pid for place in beyond}
        return crossed
