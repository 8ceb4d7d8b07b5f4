"""What is read about processes: their use of the machine, their children, and who listens on a port."""

import os
import time

import pytest
import uvloop

from byte_server import Script, serving
from efserve.loadtest.processes import ServerPids, is_loopback, listeners, usage, with_children
from efserve.loadtest.sampling import server_pids
from family import family


def test_usage_is_what_the_system_says() -> None:
    before = usage([os.getpid()])
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert usage([os.getpid()]).cpu_s - before.cpu_s == pytest.approx(0.1, abs=0.04)
    assert usage([2**22 + 1]) == usage([])


def test_the_processes_of_an_embedded_server() -> None:
    with family() as (parent, child):
        found = server_pids("127.0.0.1", 1, parent)
        assert found == with_children([parent]) == ServerPids((parent,), (child,))
        assert with_children([parent], but=[child]) is None
    assert with_children([2**22 + 1]) is None
    assert with_children([]) is None


def test_the_process_that_listens_is_found() -> None:
    async def main() -> None:
        async with serving(Script([])) as url:
            port = int(url.rpartition(":")[2])
            assert listeners("127.0.0.1", port) == [os.getpid()]
            assert listeners("192.0.2.1", port) == []
            assert server_pids("127.0.0.1", port, None) is None  # client and server in one process cannot be told apart
        assert listeners("127.0.0.1", port) == []

    uvloop.run(main())


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.8.8", "::1"))
    assert not any(is_loopback(host) for host in ("example.org", "10.0.0.1", "0.0.0.0", ""))
