"""Sampling real processes and real pages: what is read, what is left out, and what is said when it fails."""

import asyncio
import math
import os
import time

import numpy as np
import pytest
import uvloop

from byte_server import Script, serving
from efserve.errors import UsageError
from efserve.loadtest.processes import usage, with_children
from efserve.loadtest.sampling import SCRAPE_DEADLINE_S, GaugeSampler, MetricsPage, metrics_page
from efserve.records import Samples
from family import family

PAGE = b'nv_inference_request_success{model="echo"} 7\nnv_gpu_utilization{gpu_uuid="a"} 0.25\n'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE)
BAD = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"
PERIOD_S = 0.02


async def sample(sampler: GaugeSampler, until: float) -> Samples:
    begin_ns = time.monotonic_ns()
    sampler.start(begin_ns)
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(until, over.set)
    await over.wait()
    found = await sampler.stop()
    assert found is not None
    assert all(values.shape == found.time_us.shape for values in found.series.values())
    assert all(values.dtype == np.float64 for values in found.series.values())
    assert all(np.diff(found.time_us) > 0)
    return found


def test_the_processes_of_client_and_server_are_told_apart() -> None:
    with family() as pids:
        server = with_children(pids[:1])
        found = uvloop.run(sample(GaugeSampler([os.getpid()], server, None, PERIOD_S), 5.5 * PERIOD_S))
        rss_bytes = usage(pids).rss_bytes
    assert set(found.series) == {
        "client_cpu_cores",
        "client_rss_bytes",
        "server_cpu_cores",
        "gateway_cpu_cores",
        "workers_cpu_cores",
        "server_rss_bytes",
    }
    assert 2 <= found.time_us.size <= 7
    assert math.isnan(found.series["client_cpu_cores"][0])
    assert 0 <= found.series["server_cpu_cores"][-1] < 3
    assert rss_bytes >= found.series["server_rss_bytes"][-1] > 1 << 20  # they may still be starting
    assert found.remark == ""


def test_a_page_is_read_each_time() -> None:
    async def main() -> Samples:
        async with serving(Script([GOOD], "close")) as url:
            return await sample(GaugeSampler([], None, MetricsPage(url), PERIOD_S), 5.5 * PERIOD_S)

    found = uvloop.run(main())
    assert set(found.series["gpu_utilization_pct"][:-1]) == {25}
    assert set(found.series["requests[echo]"][:-1]) == {0}
    assert found.remark == ""


def test_a_page_that_fails_is_given_up_with_a_word() -> None:
    async def main() -> tuple[Samples, int]:
        script = Script([BAD], "close")
        async with serving(script) as url:
            return await sample(GaugeSampler([os.getpid()], None, MetricsPage(url), PERIOD_S), 20 * PERIOD_S), (
                script.requests
            )

    found, requests = uvloop.run(main())
    assert requests == 3
    assert "answered with status 404" in found.remark
    assert set(found.series) == {"client_cpu_cores", "client_rss_bytes"}


def test_a_page_that_never_answers_holds_nothing_up() -> None:
    async def main() -> tuple[Samples, float]:
        async with serving(Script([])) as url:
            sampler = GaugeSampler([os.getpid()], None, MetricsPage(url), PERIOD_S)
            started = time.monotonic()
            return await sample(sampler, 2 * PERIOD_S), time.monotonic() - started

    found, took_s = uvloop.run(main())
    assert took_s < SCRAPE_DEADLINE_S
    assert "client_rss_bytes" in found.series


def test_a_level_that_never_began_has_no_samples() -> None:
    assert uvloop.run(GaugeSampler([], None, None).stop()) is None


def test_the_page_that_was_asked_for_has_to_answer() -> None:
    async def main() -> None:
        async with serving(Script([GOOD], "close")) as url:
            page = await metrics_page(url + "/some/where", "", "127.0.0.1", "m")
            assert page is not None
            assert page.url == url + "/some/where"
            assert repr(page) == f"<MetricsPage {url}/some/where>"
        async with serving(Script([BAD], "close")) as url:
            await metrics_page(url, "", "127.0.0.1", "m")

    with pytest.raises(UsageError, match=r"--metrics-url: http://127.0.0.1:\d+/metrics answered with status 404"):
        uvloop.run(main())


def test_a_guess_may_be_wrong_in_silence() -> None:
    """There is no server on this loopback address."""
    assert uvloop.run(metrics_page("", "", "127.77.77.77", "m")) is None


def test_the_embedded_server_tells_its_page() -> None:
    page = uvloop.run(metrics_page("", "http://127.0.0.1:5", "127.0.0.1", "m"))
    assert page is not None
    assert page.url == "http://127.0.0.1:5/metrics"
