"""`start_MPS.sh`, run with stand-ins for NVIDIA's two programs that keep the state of the GPUs in a folder."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mps_machine import SCRIPT, Machine, add_control, end, make_machine

PID_FILE = "nvidia-cuda-mps-control.pid"


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sets compute modes")


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, {})
    (tmp_path / "bin" / "nvidia-smi").unlink()
    for action in ("start", "status"):
        done = machine.script(action)
        assert done.returncode == 1
        assert done.stderr == (
            "start_MPS.sh: no nvidia-smi on this machine: MPS needs an NVIDIA GPU and its driver; "
            "efserve runs on the CPU without it.\n"
        )
    done = machine.script("stop")
    assert (done.returncode, done.stdout) == (0, f"MPS is not running in {machine.run_dir}.\n")


def test_a_driver_without_mps_or_gpus_is_told_so(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, {}, control=False)
    assert "no nvidia-cuda-mps-control on this machine" in machine.script("start").stderr
    add_control(machine)
    done = machine.script("start")
    assert done.returncode == 1
    assert "finds no GPU" in done.stderr


def test_any_shell_may_be_told_to_run_it() -> None:
    done = subprocess.run(["sh", SCRIPT, "bogus"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "unknown argument 'bogus'" in done.stderr


@pytest.mark.parametrize("arguments", [["restart"], ["--run-dir"], ["start", "--deadline", "soon"]])
def test_wrong_arguments_are_a_usage_error(arguments: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@as_root
def test_start_status_stop(machine: Machine) -> None:
    done = machine.script("start")
    assert done.returncode == 0, done.stderr
    assert f"GPU-a: MPS started.\n  export CUDA_MPS_PIPE_DIRECTORY={machine.run_dir}/mps-GPU-a\n" in done.stdout
    assert [call for call in machine.take_calls() if call.startswith("daemon")] == [
        "daemon GPU-a mps-GPU-a share=",
        "daemon GPU-b mps-GPU-b share=",
    ]
    assert len(machine.daemons()) == 2
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Exclusive_Process", "Exclusive_Process")
    done = machine.script("status")
    assert done.returncode == 0
    assert "GPU-b: MPS is running, compute mode Exclusive_Process, servers: " in done.stdout
    done = machine.script("stop")
    assert (done.returncode, done.stdout) == (0, "GPU-a: MPS stopped.\nGPU-b: MPS stopped.\n")
    assert machine.daemons() == []
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")
    assert machine.script("status").returncode == 3
    assert sorted(path.name for path in machine.run_dir.iterdir()) == ["log-GPU-a", "log-GPU-b"]


@as_root
def test_start_twice_and_stop_twice_are_harmless(machine: Machine) -> None:
    machine.script("start")
    first = machine.daemons()
    machine.take_calls()
    done = machine.script("start")
    assert done.returncode == 0
    assert done.stdout.count("MPS is running already") == 2
    assert machine.daemons() == first
    assert not [call for call in machine.take_calls() if call.startswith("daemon") or " -c " in call]
    assert machine.script("stop").returncode == 0
    assert machine.script("stop").returncode == 0
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_one_daemon_for_all_gpus(machine: Machine) -> None:
    assert machine.script("start", "--single").returncode == 0
    assert [call for call in machine.take_calls() if call.startswith("daemon")] == ["daemon GPU-a,GPU-b mps-all share="]
    assert machine.script("status").stdout.count("MPS is running") == 2
    done = machine.script("start")
    assert done.returncode == 1
    assert "stop it first" in done.stderr
    assert len(machine.daemons()) == 1
    assert machine.script("stop").stdout == "all: MPS stopped.\n"
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_a_daemon_that_does_not_start_gives_the_mode_back(machine: Machine) -> None:
    machine.set("refuse")
    done = machine.script("start")
    assert done.returncode == 1
    assert f"the MPS daemon of GPU-a did not start; see {machine.run_dir}/log-GPU-a" in done.stderr
    assert (machine.run_dir / "log-GPU-a" / "start.log").read_text() == "no licence for this GPU\n"
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")
    assert machine.script("stop").returncode == 0


@as_root
def test_a_daemon_that_hangs_is_told_and_can_be_stopped(machine: Machine) -> None:
    machine.script("start")
    machine.set("hang")
    done = machine.script("status", deadline_s=1)
    assert done.returncode == 1
    assert done.stdout.count("does not answer within 1 s") == 2
    done = machine.script("start", deadline_s=1)
    assert done.returncode == 1
    assert "does not answer within 1 s; end it with" in done.stderr
    done = machine.script("stop", deadline_s=1)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("it gets SIGTERM") == 2
    assert machine.daemons() == []
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_what_a_crash_has_left_is_cleared_away(machine: Machine) -> None:
    """The daemons die, their folders stay, and one number now belongs to another process."""
    machine.script("start")
    for pid in machine.daemons():
        end(pid)
    (machine.run_dir / "mps-GPU-a" / "nvidia-cuda-mps-control.pid").write_text("999999999\n")
    (machine.run_dir / "mps-GPU-b" / "nvidia-cuda-mps-control.pid").write_text("999999999\n")
    assert machine.script("status").returncode == 3
    done = machine.script("start")
    assert done.returncode == 0, done.stderr
    assert len(machine.daemons()) == 2
    assert machine.script("stop").returncode == 0
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_a_process_that_is_no_daemon_is_not_ended(machine: Machine) -> None:
    other = subprocess.Popen(["tail", "-f", "/dev/null"])
    try:
        machine.script("start")
        for pid in machine.daemons():
            end(pid)
        (machine.run_dir / "mps-GPU-a" / "nvidia-cuda-mps-control.pid").write_text(f"{other.pid}\n")
        machine.set("hang")
        assert machine.script("stop", deadline_s=1).returncode == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(10)


def test_another_daemon_with_the_number_in_a_pid_file_is_not_ended(machine: Machine) -> None:
    machine.script("start")
    a_pid, b_pid = (int((machine.pipes(unit) / PID_FILE).read_text()) for unit in ("GPU-a", "GPU-b"))
    end(a_pid)
    (machine.pipes("GPU-a") / PID_FILE).write_text(f"{b_pid}\n")
    machine.set("refuse")
    done = machine.script("start")
    assert done.returncode == 1
    assert machine.daemons() == [b_pid]


@as_root
def test_servers_that_outlive_their_daemon_are_ended(machine: Machine) -> None:
    machine.script("start")
    server = machine.start_server("GPU-a")
    for pid in set(machine.daemons()) - {server}:
        end(pid)
    assert machine.daemons() == [server]
    assert machine.script("stop", deadline_s=1).returncode == 0
    assert machine.daemons() == []
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


def test_a_daemon_that_ignores_everything_is_killed(machine: Machine) -> None:
    machine.set("stubborn")
    machine.script("start")
    done = machine.script("stop", deadline_s=1)
    assert done.returncode == 0
    assert done.stderr.count("it gets SIGKILL") == 2
    assert machine.daemons() == []


@as_root
def test_a_kept_mode_that_is_unreadable_becomes_the_default(machine: Machine) -> None:
    machine.script("start")
    (machine.run_dir / "mode-GPU-b").write_text("")
    assert machine.script("stop").returncode == 0
    assert machine.mode("GPU-b") == "Default"


def test_a_run_directory_whose_sockets_would_have_too_long_a_path_is_told(machine: Machine) -> None:
    machine = Machine(machine.folder, machine.folder / ("x" * 100))
    done = machine.script("start")
    assert done.returncode == 1
    assert "at most 107 can be; name a shorter one with --run-dir" in done.stderr


@as_root
def test_the_run_directory_of_another_user_is_refused(machine: Machine) -> None:
    machine.run_dir.mkdir()
    os.chown(machine.run_dir, 12345, 12345)
    done = machine.script("start")
    assert done.returncode == 1
    assert "belongs to another user" in done.stderr


@as_root
def test_modes_that_cannot_be_set_do_not_keep_mps_from_starting(machine: Machine) -> None:
    machine.set("locked")
    done = machine.script("start")
    assert done.returncode == 0
    assert "cannot set the compute mode of GPU-a" in done.stderr
    assert len(machine.daemons()) == 2
    machine.set("locked", on=False)
    assert machine.script("stop").returncode == 0
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


@as_root
def test_a_mode_that_cannot_be_restored_is_told_and_kept_for_the_next_stop(machine: Machine) -> None:
    machine.script("start")
    machine.set("locked")
    done = machine.script("stop")
    assert done.returncode == 1
    assert "as root: nvidia-smi -i GPU-b -c PROHIBITED" in done.stderr
    machine.set("locked", on=False)
    assert machine.script("stop").returncode == 0
    assert (machine.mode("GPU-a"), machine.mode("GPU-b")) == ("Default", "Prohibited")


def test_gpus_in_mig_mode_are_left_alone(machine: Machine) -> None:
    (machine.state / "gpus").write_text("GPU-a Enabled\nGPU-b [N/A]\n")
    done = machine.script("start")
    assert done.returncode == 0, done.stderr
    assert "GPU-a is in MIG mode and is left alone" in done.stderr
    assert machine.mode("GPU-a") == "Default"
    assert len(machine.daemons()) == 1
    assert machine.script("stop").returncode == 0


def test_shellcheck_has_nothing_to_say() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([program, str(SCRIPT)], check=True, timeout=60)
