"""Whether shares are obtained and isolate: processes in partitions by green contexts and by MPS, alone and in pairs.

The compute mode and MIG are left as they are.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from efserve.partition import Partition
from efserve.partitions import entry
from gpu_proof_parts.rows import Row, Scale

_DEADLINE_S = 25.0  # for a client to be ready, or to have measured
_CONTROL_S = 8.0  # for a command to the daemon, which can hang
_ROOTS = (Path(__file__).parents[1], Path(__file__).parents[2] / "src")


class Client:
    """A process in its partition."""

    def __init__(self, partition: Partition, scale: Scale, variables: dict[str, str]) -> None:
        path = os.pathsep.join([*map(str, _ROOTS), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        sizes = ("128", "0.1") if scale.cpu else ("4096", "1.5")
        command = [sys.executable, "-m", "gpu_proof_parts.share_client", json.dumps(asdict(partition)), *sizes]
        self._process = subprocess.Popen(
            command,
            env={**entry.environment(partition), "PYTHONPATH": path, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self) -> None:
        """Let it measure."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)

    def says(self) -> dict[str, float]:
        """What it says next; RuntimeError with its last words when it ends or takes too long."""
        out = self._process.stdout
        assert out is not None
        until = monotonic() + _DEADLINE_S
        while select.select([out], [], [], max(0.0, until - monotonic()))[0]:
            line = out.readline()
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
            if not line:
                assert self._process.stderr is not None
                last = self._process.stderr.read().strip().splitlines()[-1:] or ["no message"]
                raise RuntimeError(f"a client ended: {last[0]}")
        raise RuntimeError(f"a client said nothing for {_DEADLINE_S:.0f} s")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def green_contexts(scale: Scale) -> Iterator[Row]:
    """Shares by green contexts."""
    yield from _shares("green", scale, {"means": "" if scale.cpu else "green"}, {})


def mps(scale: Scale) -> Iterator[Row]:
    """Shares by MPS, with a daemon of our own in a folder of its own."""
    if scale.cpu:
        yield Row("mps", "left out", note="a CPU has no MPS", failed=True)
        return
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        yield Row("mps", "left out", note="no nvidia-cuda-mps-control on this machine", failed=True)
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/p", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/l"}
        for path in variables.values():
            Path(path).mkdir()
        with _daemon(control, variables) as problem:
            if problem:
                yield Row("mps", "the daemon", note=problem, failed=True)
                return
            yield Row("mps", "the daemon", note="starts")
            yield from _shares("mps", scale, {"means": "mps", "pipe_directory": f"{folder}/p"}, variables)
            yield Row("mps", "servers", note=_control(control, variables, "get_server_list") or "none")


@contextmanager
def _daemon(control: str, variables: dict[str, str]) -> Iterator[str]:
    """A daemon for the block; why there is none."""
    started = subprocess.run(
        [control, "-d"], env=os.environ | variables, capture_output=True, text=True, timeout=_CONTROL_S, check=False
    )
    try:
        yield f"{started.stdout} {started.stderr}".strip() if started.returncode else ""
    finally:
        _control(control, variables, "quit")


def _control(control: str, variables: dict[str, str], command: str) -> str:
    """A command to the daemon; its answer in one line."""
    try:
        asked = subprocess.run(
            [control],
            input=f"{command}\n",
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=_CONTROL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{command} was not answered within {_CONTROL_S:.0f} s"
    return " ".join(f"{asked.stdout} {asked.stderr}".split())


def _shares(section: str, scale: Scale, means: dict[str, Any], variables: dict[str, str]) -> Iterator[Row]:
    device = Partition() if scale.cpu else _whole()
    alone: dict[float, float] = {}
    for share_pct in (0.0, 50.0) if scale.cpu else (0.0, 25.0, 50.0, 75.0):
        partition = _partition(device, share_pct, means)
        name = f"{share_pct:.0f} %" if share_pct else "the whole device"
        with _clients([partition], scale, variables) as (client,):
            said = client.says()
            alone[share_pct] = _measured([client])[0]
        note = f"{alone[share_pct] / alone[0.0]:.2f} x the whole; torch sees {said['torch_sees']:.0f}"
        yield Row(section, f"{name}: SMs (cores) obtained", said["obtained"], "", note)
    for share_pct in (0.0, 50.0):
        partition = _partition(device, share_pct, means)
        with _clients([partition, partition], scale, variables) as pair:
            for client in pair:
                client.says()
            rates = _measured(pair)
        kind = "with 50 % each" if share_pct else "without shares"
        slowed = ", ".join(f"{rate / alone[share_pct]:.2f}" for rate in rates)
        yield Row(section, f"two side by side {kind}", sum(rates) / alone[0.0], "x one", f"each {slowed} x alone so")


def _partition(device: Partition, share_pct: float, means: dict[str, Any]) -> Partition:
    """A share of the device; the whole of it by MPS too, where that is the means, but not by a green context."""
    if not share_pct and means.get("means") != "mps":
        return device
    return Partition(device.device, share_pct=share_pct, units=device.units, **means)


def _whole() -> Partition:
    from efserve.devices.gpu import gpus

    gpu = gpus()[0]
    return Partition(gpu.uuid, units=gpu.sm_count or 0)


@contextmanager
def _clients(partitions: Sequence[Partition], scale: Scale, variables: dict[str, str]) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        clients = []
        for partition in partitions:
            clients.append(Client(partition, scale, variables if partition.means == "mps" else {}))
            stack.callback(clients[-1].close)
        yield clients


def _measured(clients: Sequence[Client]) -> list[float]:
    """TFLOP/s of each while all of them run."""
    for client in clients:
        client.start()
    return [client.says()["tflops"] for client in clients]
