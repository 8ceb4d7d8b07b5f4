"""Facts that `efserve doctor` gathers: of this machine, of trees of files, of stand-ins for NVIDIA's daemons."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from efserve.inspection.doctor import gather
from efserve.inspection.doctor.diagnose import CHECKS
from efserve.inspection.doctor.facts import (
    MpsDaemon,
)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        assert gather.port(number, "--http-port").problem == "another program listens on it"
    assert gather.port(number, "--http-port").problem == ""


def test_cards_and_device_files(tmp_path: Path) -> None:
    for name, vendor, kind in (("a", "0x10de", "0x030200"), ("b", "0x10de", "0x040300"), ("c", "0x8086", "0x030000")):
        folder = tmp_path / "sys/bus/pci/devices" / name
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl", "nvidia-modeset", "null"):
        (tmp_path / "dev" / name).touch()
    found = gather.hardware(tmp_path)
    assert found.cards == 1
    assert [Path(node.path).name for node in found.nodes] == ["nvidia0", "nvidiactl"]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ((), ""),
        ((".dockerenv",), "docker"),
        (("run/.containerenv",), "podman"),
        ((".dockerenv", "var/run/secrets/kubernetes.io/x"), "kubernetes"),
    ],
)
def test_kinds_of_containers(tmp_path: Path, files: tuple[str, ...], kind: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert gather.container(tmp_path).kind == kind


CONTROL = """#!/bin/sh
read question
case "$CUDA_MPS_PIPE_DIRECTORY" in
    */hung) while :; do read x < "$CUDA_MPS_PIPE_DIRECTORY/never"; done ;;
    */dead) echo "Cannot find MPS control daemon process" >&2; exit 1 ;;
esac
[ "$question" = get_server_list ] && echo 4711
"""


def test_daemons_of_mps_are_found_and_asked(tmp_path: Path) -> None:
    """/proc as Linux writes it; the program stands in for NVIDIA's, with the answers of its man page."""
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(CONTROL)
    control.chmod(0o755)
    pipes = {name: tmp_path / name for name in ("well", "hung", "dead")}
    for path in pipes.values():
        path.mkdir()
    os.mkfifo(pipes["hung"] / "never")
    processes = {
        10: ("nvidia-cuda-mps-control\0-d\0", f"A=1\0CUDA_MPS_PIPE_DIRECTORY={pipes['well']}\0"),
        11: ("/usr/bin/nvidia-cuda-mps-control\0-d\0", f"CUDA_MPS_PIPE_DIRECTORY={pipes['hung']}\0"),
        12: ("nvidia-cuda-mps-control\0-f\0", f"CUDA_MPS_PIPE_DIRECTORY={pipes['dead']}\0"),
        13: ("nvidia-cuda-mps-control\0-d\0", ""),
        14: ("nvidia-cuda-mps-control\0", "A=1\0"),
        15: ("nvidia-cuda-mps-server\0", "A=1\0"),
        16: ("python3\0nvidia-cuda-mps-control\0-d\0", "A=1\0"),
    }
    for pid, (command, environment) in processes.items():
        folder = tmp_path / f"proc/{pid}"
        folder.mkdir(parents=True)
        (folder / "cmdline").write_text(command)
        (folder / "environ").write_text(environment)
    found = gather.mps_facts(str(control), 3, root=tmp_path)
    assert found.control_program == str(control)
    problems = {daemon.pid: daemon.problem for daemon in found.daemons}
    assert problems == {
        10: "",
        11: f"the MPS daemon in {pipes['hung']} does not answer 'get_server_list' within 3 s",
        12: f"the MPS daemon in {pipes['dead']} refuses 'get_server_list': Cannot find MPS control daemon process",
        13: "",
    }
    assert {daemon.pid: daemon.pipe_directory for daemon in found.daemons}[13] == ""
    assert found.server_uids == (os.getuid(),)


@pytest.mark.parametrize(("name", "found"), [("well", True), ("dead", False), ("absent", False)])
def test_a_daemon_outside_of_the_container_is_found_by_its_folder(tmp_path: Path, name: str, found: bool) -> None:
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(CONTROL)
    control.chmod(0o755)
    pipes = tmp_path / name
    if name != "absent":
        pipes.mkdir()
        (pipes / "control").touch()
    daemons = gather.mps_facts(str(control), 60, str(pipes), tmp_path).daemons
    assert daemons == ((MpsDaemon(0, os.getuid(), str(pipes)),) if found else ())


def test_this_machine_in_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "efserve", "doctor", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=110,
    )
    told = json.loads(done.stdout)
    assert [finding["check"] for finding in told["findings"]] == [check for _, check, _, _ in CHECKS]
    states = {finding["check"]: finding["state"] for finding in told["findings"]}
    assert done.returncode == int("problem" in states.values())
    assert states["kernel"] == states["folders"] == "ok"
    assert told["abilities"]


def test_a_machine_with_a_stand_in_for_the_driver(driver_in_c: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "efserve", "doctor", "--json"],
        stdout=subprocess.PIPE,
        check=False,
        timeout=110,
        env={**os.environ, "LD_LIBRARY_PATH": str(driver_in_c), "CUDA_VISIBLE_DEVICES": ""},
    )
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert findings["driver"]["state"] == "ok"
    assert findings["GPUs"]["found"].startswith("Slice in C (16 SMs")
    assert findings["variables"]["state"] == "problem"
