"""Gauges of server and client, read every half second while a level runs.

Series, of which those that cannot be had are left out: `client_cpu_cores`, `client_rss_bytes`; of a server on this
machine `server_cpu_cores`, `gateway_cpu_cores`, `workers_cpu_cores`, `server_rss_bytes`; from its metrics page
`gpu_utilization_pct`, `gpu_power_w`, `gpu_memory_used_bytes` (with `[n]` where there are several GPUs),
`pending_requests`, `workers_rss_bytes`, and `requests[MODEL]`: answered since the first reading.
A value of CPU covers the time since the one before. The load never waits for a reading.
"""

import asyncio
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from efserve.client.control import HttpClient
from efserve.errors import RemoteError, UsageError
from efserve.loadtest.processes import ServerPids, Usage, listeners, usage, with_children
from efserve.loadtest.prometheus import Gauges, gauges
from efserve.records import Samples

PERIOD_S = 0.5
SCRAPE_DEADLINE_S = 0.4
GUESS_DEADLINE_S = 1.0
TRIES = 3  # scrapes that fail in a row, until the metrics page is given up
METRICS_PORT = 8002  # Triton's, and ours
_LAST_S = 0.1  # a last reading at the end, where the one before is at least that old


class MetricsPage:
    """A server's Prometheus page."""

    def __init__(self, url: str, deadline_s: float = SCRAPE_DEADLINE_S) -> None:
        """A URL without a path means /metrics. Raises UsageError for one that is not HTTP."""
        self._http = HttpClient(url, deadline_s)
        self._path = "" if self._http.endpoint.prefix else "/metrics"

    def __repr__(self) -> str:
        return f"<MetricsPage {self.url}>"

    @property
    def url(self) -> str:
        """Where it is."""
        return self._http.endpoint.url + self._path

    async def read(self) -> Gauges:
        """The page's values now; raises RemoteError."""
        answer = await self._http.get(self._path)
        if answer.status != 200:
            raise RemoteError(f"{self.url} answered with status {answer.status}")
        return gauges(answer.body.decode("utf-8", "replace"))


async def metrics_page(given: str, embedded: str, host: str, model: str) -> MetricsPage | None:
    """The page to sample: the one given, the embedded server's, or a guess, which has to know the model.

    Raises UsageError when the given one does not answer.
    """
    if given:
        try:
            await MetricsPage(given, 10 * GUESS_DEADLINE_S).read()
        except RemoteError as exc:
            raise UsageError(f"--metrics-url: {exc}") from exc
        return MetricsPage(given)
    if embedded:
        return MetricsPage(embedded)
    url = f"http://[{host}]:{METRICS_PORT}" if ":" in host else f"http://{host}:{METRICS_PORT}"
    try:
        found = await MetricsPage(url, GUESS_DEADLINE_S).read()
    except RemoteError:
        return None
    return MetricsPage(url) if model in found.models else None


def server_pids(host: str, port: int, embedded_pid: int | None) -> ServerPids | None:
    """The server's processes where they are on this machine and can be seen; None too when it lives in this one."""
    if embedded_pid is not None:
        return with_children([embedded_pid])
    return with_children(listeners(host, port), but=[os.getpid()])


@dataclass(slots=True)
class _Row:
    """One reading: the time, processes' totals, and the values of gauges."""

    time_ns: int
    used: dict[str, Usage]
    values: dict[str, float] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)


class GaugeSampler:
    """Samples one level: `start` when its first window begins, `stop` when the last is over."""

    def __init__(
        self,
        client_pids: Sequence[int],
        server: ServerPids | None,
        page: MetricsPage | None,
        period_s: float = PERIOD_S,
    ) -> None:
        self._groups = {"client": tuple(client_pids)}
        if server is not None:
            self._groups |= {"gateway": server.gateway, "workers": server.workers}
        self._page = page
        self._period_s = period_s
        self._begin_ns = 0
        self._rows: list[_Row] = []
        self._remark = ""
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<GaugeSampler of {', '.join(self._groups)} and {self._page}, {len(self._rows)} readings>"

    def start(self, begin_ns: int) -> None:
        """Read now and then every half second, in a task."""
        self._begin_ns = begin_ns
        self._read_processes()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> Samples | None:
        """The samples; None when `start` was never called."""
        if self._task is None:
            return None
        self._task.cancel()
        (ended,) = await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        if isinstance(ended, Exception):
            self._remark = f"sampling ended: {ended!r}"
        elif time.monotonic_ns() - self._rows[-1].time_ns > _LAST_S * 1e9:
            self._read_processes()
        return _samples(self._rows, self._begin_ns, self._remark)

    async def _run(self) -> None:
        page, missed = self._page, 0
        while True:
            if page is not None:
                missed = 0 if await self._read_page(page) else missed + 1
                page = page if missed < TRIES else None
            elapsed_s = (time.monotonic_ns() - self._begin_ns) / 1e9
            due_s = math.floor(elapsed_s / self._period_s + 1.25) * self._period_s  # timers may be a little early
            await asyncio.sleep(due_s - elapsed_s)
            self._read_processes()

    def _read_processes(self) -> None:
        used = {name: usage(pids) for name, pids in self._groups.items()}
        self._rows.append(_Row(time.monotonic_ns(), used))

    async def _read_page(self, page: MetricsPage) -> bool:
        """False when the page did not answer in time: its values of this reading are missing then."""
        row = self._rows[-1]
        try:
            found = await page.read()
        except RemoteError as exc:
            self._remark = f"the metrics page did not always answer: {exc}"
            return False
        row.values, row.answered = found.values, found.answered
        return True


def _samples(rows: Sequence[_Row], begin_ns: int, remark: str) -> Samples:
    first: dict[str, float] = {}
    table = []
    for before, row in zip((None, *rows), rows, strict=False):
        values = _process_values(before, row) | row.values
        for model, answered in row.answered.items():
            values[f"requests[{model}]"] = answered - first.setdefault(model, answered)
        table.append(values)
    names = dict.fromkeys(name for values in table for name in values)
    return Samples(
        np.array([(row.time_ns - begin_ns) // 1000 for row in rows], np.int64),
        {name: np.array([values.get(name, float("nan")) for values in table], np.float64) for name in names},
        remark,
    )


def _process_values(before: _Row | None, row: _Row) -> dict[str, float]:
    """Resident memory, and the cores used since the reading before."""
    groups: dict[str, tuple[str, ...]] = {"client": ("client",)}
    if "gateway" in row.used:
        groups |= {"server": ("gateway", "workers"), "gateway": ("gateway",), "workers": ("workers",)}
    values = {
        f"{name}_rss_bytes": sum(row.used[part].rss_bytes for part in groups[name])
        for name in ("client", "server")
        if name in groups
    }
    if before is not None:
        elapsed_s = (row.time_ns - before.time_ns) / 1e9
        for name, parts in groups.items():
            used_s = sum(row.used[part].cpu_s - before.used[part].cpu_s for part in parts)
            values[f"{name}_cpu_cores"] = max(used_s, 0.0) / elapsed_s  # less than nothing: a process has ended
    return values
