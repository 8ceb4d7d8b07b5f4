"""`start_MPS.sh`, run with stand-ins for NVIDIA's two programs that keep the state of the GPUs in a folder."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "start_MPS.sh"
NEEDED = ("timeout", "sed", "tail", "id", "mkdir", "rm", "sleep", "cat", "bash", "setsid", "mkfifo")

# A folder with a file `gpus` (a line "uuid MIG-mode" each) and `mode.<uuid>`; a file `locked` refuses to set modes.
NVIDIA_SMI = """#!/usr/bin/env bash
state={state}
printf 'smi %s\\n' "$*" >>"$state/calls"
case $1 in
--query-gpu=*)
    while read -r uuid mig; do printf '%s, %s, %s\\n' "$uuid" "$(cat "$state/mode.$uuid")" "$mig"; done <"$state/gpus"
    ;;
-i)
    [[ -e $state/locked ]] && exit 4
    declare -A names=([DEFAULT]=Default [EXCLUSIVE_PROCESS]=Exclusive_Process [PROHIBITED]=Prohibited)
    printf '%s' "${{names[$4]}}" >"$state/mode.$2"
    ;;
esac
"""

# The daemon is a process of this same program, which waits for ever on a pipe. Files: `refuse` makes the start fail,
# `hang` makes every command hang.
CONTROL = """#!/usr/bin/env bash
state={state}
pipe_dir=$CUDA_MPS_PIPE_DIRECTORY
if [[ ${{1:-}} == --daemon ]]; then
    exec 3<>"$pipe_dir/wait"
    echo up >"$pipe_dir/up"
    read -r -u 3 _
    exit
fi
if [[ ${{1:-}} == -d ]]; then
    printf 'daemon %s %s\\n' "$CUDA_VISIBLE_DEVICES" "${{pipe_dir##*/}}" >>"$state/calls"
    [[ -e $state/refuse ]] && {{ echo "no licence for this GPU"; exit 1; }}
    mkfifo "$pipe_dir/wait" "$pipe_dir/up"
    setsid "$0" --daemon >/dev/null 2>&1 </dev/null &
    read -r _ <"$pipe_dir/up"
    echo $! >"$pipe_dir/nvidia-cuda-mps-control.pid"
    echo $! >>"$state/daemons"
    exit
fi
read -r command
printf 'control %s %s\\n' "${{pipe_dir##*/}}" "$command" >>"$state/calls"
[[ -e $state/hang ]] && tail -f /dev/null
pid=$(cat "$pipe_dir/nvidia-cuda-mps-control.pid" 2>/dev/null)
kill -0 "$pid" 2>/dev/null || {{ echo "Cannot find MPS control daemon process"; exit 1; }}
case $command in
get_server_list) echo 4711 ;;
quit) kill "$pid" ;;
esac
"""


@dataclass
class Machine:
    """A machine with GPUs, as far as the two programs show it."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def mps(self, *arguments: str, deadline_s: int = 10) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.folder / "bin"), "HOME": "/"}
        options = ["--run-dir", str(self.run_dir), "--deadline", str(deadline_s)]
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments, *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def mode(self, uuid: str) -> str:
        return (self.state / f"mode.{uuid}").read_text()

    def set(self, name: str, on: bool = True) -> None:
        """Switch one of the stand-ins' troubles on or off."""
        if on:
            (self.state / name).touch()
        else:
            (self.state / name).unlink()

    def take_calls(self) -> list[str]:
        path = self.state / "calls"
        calls = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return calls

    def daemons(self) -> list[int]:
        """Processes of daemons that are alive."""
        path = self.state / "daemons"
        pids = [int(line) for line in path.read_text().split()] if path.exists() else []
        return [pid for pid in pids if _is_daemon(pid)]


def _is_daemon(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.startswith("Name:\tnvidia-cuda-mps") and "State:\tZ" not in status


def make_machine(folder: Path, gpus: dict[str, str], *, control: bool = True) -> Machine:
    """A machine with these GPUs (uuid -> compute mode), or without the program that controls MPS."""
    machine = Machine(folder)
    machine.state.mkdir()
    (folder / "bin").mkdir()
    for name in NEEDED:
        program = shutil.which(name)
        assert program is not None, name
        (folder / "bin" / name).symlink_to(program)
    _write_program(folder / "bin" / "nvidia-smi", NVIDIA_SMI.format(state=machine.state))
    if control:
        _write_program(folder / "bin" / "nvidia-cuda-mps-control", CONTROL.format(state=machine.state))
    (machine.state / "gpus").write_text("".join(f"{uuid} Disabled\n" for uuid in gpus))
    for uuid, mode in gpus.items():
        (machine.state / f"mode.{uuid}").write_text(mode)
    return machine


def _write_program(path: Path, text: str) -> None:
    path.write_text(text.replace("#!/usr/bin/env bash", f"#!{shutil.which('bash')}"))
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Two GPUs, one of which has a compute mode of its own."""
    machine = make_machine(tmp_path, {"GPU-a": "Default", "GPU-b": "Prohibited"})
    yield machine
    for pid in machine.daemons():
        os.kill(pid, signal.SIGKILL)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sets compute modes")


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, {})
    (tmp_path / "bin" / "nvidia-smi").unlink()
    for action in ("start", "status"):
        done = machine.mps(action)
        assert done.returncode == 1
        assert done.stderr == (
            "start_MPS.sh: no nvidia-smi on this machine: MPS needs an NVIDIA GPU and its driver; "
            "efserve runs on the CPU without it.\n"
        )
    done = machine.mps("stop")
    assert (done.returncode, done.stdout) == (0, f"MPS is not running in {machine.run_dir}.\n")


def test_a_driver_without_mps_or_gpus_is_told_so(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, {}, control=False)
    assert "no nvidia-cuda-mps-control on this machine" in machine.mps("start").stderr
    _write_program(tmp_path / "bin" / "nvidia-cuda-mps-control", CONTROL.format(state=machine.state))
    done = machine.mps("start")
    assert done.returncode == 1
    assert "lists no GPU" in done.stderr


@pytest.mark.parametrize("arguments", [["restart"], ["--run-dir"], ["start", "--deadline", "soon"]])
def test_wrong_arguments_are_a_usage_error(arguments: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@as_root
def test_start_status_stop(machine: Machine) -> None:
    done = machine.mps("start")
    assert done.returncode == 0, done.stderr
    assert f"GPU-a: MPS started.\n  export CUDA_MPS_PIPE_DIRECTORY={machine.run_dir}/mps-GPU-a\n" in done.stdout
    assert [call for call in machine.take_calls() if call.startswith("daemon")] == [
        "daemon GPU-a mps-GPU-a",
        "daemon GPU-b mps-GPU-b",
    ]
    assert len(machine.daemons()) == 2
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Exclusive_Process", "Exclusive_Process")
    done = machine.mps("status")
    assert done.returncode == 0
    assert "GPU-b: MPS is running, compute mode Exclusive_Process, servers: 4711" in done.stdout
    done = machine.mps("stop")
    assert (done.returncode, done.stdout) == (0, "GPU-a: MPS stopped.\nGPU-b: MPS stopped.\n")
    assert machine.daemons() == []
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")
    assert machine.mps("status").returncode == 3
    assert sorted(path.name for path in machine.run_dir.iterdir()) == ["log-GPU-a", "log-GPU-b"]


@as_root
def test_start_twice_and_stop_twice_are_harmless(machine: Machine) -> None:
    machine.mps("start")
    first = machine.daemons()
    machine.take_calls()
    done = machine.mps("start")
    assert done.returncode == 0
    assert done.stdout.count("MPS is running already") == 2
    assert machine.daemons() == first
    assert not [call for call in machine.take_calls() if call.startswith("daemon") or " -c " in call]
    assert machine.mps("stop").returncode == 0
    assert machine.mps("stop").returncode == 0
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_one_daemon_for_all_gpus(machine: Machine) -> None:
    assert machine.mps("start", "--single").returncode == 0
    assert [call for call in machine.take_calls() if call.startswith("daemon")] == ["daemon GPU-a,GPU-b mps-all"]
    assert machine.mps("status").stdout.count("MPS is running") == 2
    done = machine.mps("start")
    assert done.returncode == 1
    assert "stop it first" in done.stderr
    assert len(machine.daemons()) == 1
    assert machine.mps("stop").stdout == "all: MPS stopped.\n"
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_a_daemon_that_does_not_start_gives_the_mode_back(machine: Machine) -> None:
    machine.set("refuse")
    done = machine.mps("start")
    assert done.returncode == 1
    assert f"the MPS daemon of GPU-a did not start; see {machine.run_dir}/log-GPU-a" in done.stderr
    assert (machine.run_dir / "log-GPU-a" / "start.log").read_text() == "no licence for this GPU\n"
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")
    assert machine.mps("stop").returncode == 0


@as_root
def test_a_daemon_that_hangs_is_told_and_can_be_stopped(machine: Machine) -> None:
    machine.mps("start")
    machine.set("hang")
    done = machine.mps("status", deadline_s=1)
    assert done.returncode == 1
    assert done.stdout.count("does not answer within 1 s") == 2
    done = machine.mps("start", deadline_s=1)
    assert done.returncode == 1
    assert "does not answer within 1 s; end it with" in done.stderr
    done = machine.mps("stop", deadline_s=1)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("it gets SIGTERM") == 2
    assert machine.daemons() == []
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_what_a_crash_has_left_is_cleared_away(machine: Machine) -> None:
    """The daemons die, their folders stay, and one number now belongs to another process."""
    machine.mps("start")
    for pid in machine.daemons():
        os.kill(pid, signal.SIGKILL)
    (machine.run_dir / "mps-GPU-a" / "nvidia-cuda-mps-control.pid").write_text("999999999\n")
    (machine.run_dir / "mps-GPU-b" / "nvidia-cuda-mps-control.pid").write_text("999999999\n")
    assert machine.mps("status").returncode == 3
    done = machine.mps("start")
    assert done.returncode == 0, done.stderr
    assert len(machine.daemons()) == 2
    assert machine.mps("stop").returncode == 0
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_a_process_that_is_no_daemon_is_not_ended(machine: Machine) -> None:
    other = subprocess.Popen(["tail", "-f", "/dev/null"])
    try:
        machine.mps("start")
        for pid in machine.daemons():
            os.kill(pid, signal.SIGKILL)
        (machine.run_dir / "mps-GPU-a" / "nvidia-cuda-mps-control.pid").write_text(f"{other.pid}\n")
        machine.set("hang")
        assert machine.mps("stop", deadline_s=1).returncode == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(10)


@as_root
def test_modes_that_cannot_be_set_do_not_keep_mps_from_starting(machine: Machine) -> None:
    machine.set("locked")
    done = machine.mps("start")
    assert done.returncode == 0
    assert "cannot set the compute mode of GPU-a" in done.stderr
    assert len(machine.daemons()) == 2
    machine.set("locked", on=False)
    assert machine.mps("stop").returncode == 0
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_a_mode_that_cannot_be_restored_is_told_and_kept_for_the_next_stop(machine: Machine) -> None:
    machine.mps("start")
    machine.set("locked")
    done = machine.mps("stop")
    assert done.returncode == 1
    assert "as root: nvidia-smi -i GPU-b -c PROHIBITED" in done.stderr
    machine.set("locked", on=False)
    assert machine.mps("stop").returncode == 0
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


def test_gpus_in_mig_mode_are_left_alone(machine: Machine) -> None:
    (machine.state / "gpus").write_text("GPU-a Enabled\nGPU-b [N/A]\n")
    done = machine.mps("start")
    assert done.returncode == 0, done.stderr
    assert "GPU-a is in MIG mode and is left alone" in done.stderr
    assert machine.mode("GPU-a") == "Default"
    assert len(machine.daemons()) == 1
    assert machine.mps("stop").returncode == 0


def test_shellcheck_has_nothing_to_say() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([program, str(SCRIPT)], check=True, timeout=60)
