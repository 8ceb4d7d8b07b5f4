"""A machine with GPUs, as far as `nvidia-smi` and `nvidia-cuda-mps-control` show it: two stand-in programs, one folder.

The stand-ins answer in the formats of NVIDIA's documents (Multi-Process Service: "Tools and Interface Reference" for
get_server_list, get_server_status, get_client_list, terminate_client, start_server, quit and the pid file; "Client
Early Termination" for the table of `ps`); the two sentences of a daemon that is missing or runs already are those that
its users quote in public bug reports. Nothing here was recorded on a GPU.
"""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "start_MPS.sh"
_NEEDED = ("timeout", "sed", "tail", "id", "mkdir", "rm", "mv", "sleep", "cat", "bash", "setsid", "mkfifo", "grep")

# In the folder: `gpus` (a line "uuid MIG-mode" each), `mode.<uuid>`; `locked` refuses to set modes, `hang-smi` hangs.
_NVIDIA_SMI = """#!/usr/bin/env bash
state={state}
printf 'smi %s\\n' "$*" >>"$state/calls"
[[ -e $state/hang-smi ]] && exec sleep 300
case $1 in
--query-gpu=*)
    IFS=, read -ra fields <<<"${{1#*=}}"
    index=0
    while read -r uuid mig; do
        line=""
        for field in "${{fields[@]}}"; do
            case $field in
            index) value=$index ;;
            uuid) value=$uuid ;;
            compute_mode) value=$(<"$state/mode.$uuid") ;;
            mig.mode.current) value=$mig ;;
            esac
            line+="${{line:+, }}$value"
        done
        printf '%s\\n' "$line"
        index=$((index + 1))
    done <"$state/gpus"
    [[ -s $state/gpus ]] || {{ echo "No devices were found"; exit 6; }}
    ;;
-i)
    [[ -e $state/locked ]] && exit 4
    declare -A names=([DEFAULT]=Default [EXCLUSIVE_PROCESS]=Exclusive_Process [PROHIBITED]=Prohibited)
    [[ -n ${{names[$4]:-}} ]] || exit 2
    printf '%s' "${{names[$4]}}" >"$state/mode.$2"
    ;;
esac
"""

# The daemon and its server are processes of this program, waiting on a pipe. Beside the pid file, the pipe directory
# has `server` (its pid, once there is one), `status` and `clients`. Troubles, files in the state folder: `refuse` makes
# the start fail, `hang` makes every command hang, `hang-WORD` that command (-d: the start), `stubborn` daemons ignore
# quit and SIGTERM, `forbidden` commands are refused, `stays-faulty` servers do not recover.
_CONTROL = """#!/usr/bin/env bash
state={state}
pipe_dir=${{CUDA_MPS_PIPE_DIRECTORY:-/nowhere}}
if [[ ${{1:-}} == --wait ]]; then
    [[ -e $state/stubborn ]] && trap '' TERM
    exec 3<>"$pipe_dir/wait"
    echo up >"$2"
    while ! read -r -u 3 _; do :; done
    exit
fi
launch() {{
    up=$pipe_dir/up.$$
    mkfifo "$up"
    setsid "$1" --wait "$up" >/dev/null 2>&1 </dev/null &
    launched=$!
    read -r _ <"$up"
    rm "$up"
    echo "$launched" >>"$state/daemons"
}}
pid=$(cat "$pipe_dir/nvidia-cuda-mps-control.pid" 2>/dev/null)
tell() {{ [[ ! -p $state/heard ]] || echo "$1" >"$state/heard"; }}
alive() {{ [[ -n $1 ]] && kill -0 "$1" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$1/status"; }}
answers() {{ alive "$pid" && grep -qzxF "CUDA_MPS_PIPE_DIRECTORY=$pipe_dir" "/proc/$pid/environ"; }}
if [[ ${{1:-}} == -d ]]; then
    printf 'daemon %s %s share=%s\\n' "$CUDA_VISIBLE_DEVICES" "${{pipe_dir##*/}}" \\
        "${{CUDA_MPS_ACTIVE_THREAD_PERCENTAGE:-}}" >>"$state/calls"
    [[ -e $state/refuse ]] && {{ echo "no licence for this GPU"; exit 1; }}
    answers && {{ echo "An instance of this daemon is already running"; exit 1; }}
    mkfifo "$pipe_dir/wait"
    launch "$0"
    echo "$launched" >"$pipe_dir/nvidia-cuda-mps-control.pid"
    echo "[2026-01-01 00:00:00.000 Control $launched] Start" >>"$CUDA_MPS_LOG_DIRECTORY/control.log"
    [[ -e $state/hang-d ]] && {{ tell hang; exec sleep 300; }}
    exit 0
fi
read -r command argument rest
printf 'control %s %s\\n' "${{pipe_dir##*/}}" "$command${{argument:+ $argument}}${{rest:+ $rest}}" >>"$state/calls"
tell "$command"
[[ -e $state/hang || -e $state/hang-$command ]] && exec sleep 300
[[ -e $state/forbidden ]] && {{ echo "User did not send valid credentials"; exit 1; }}
answers || {{ echo "Cannot find MPS control daemon process"; exit 1; }}
server=$(cat "$pipe_dir/server" 2>/dev/null)
clients() {{
    [[ -e $pipe_dir/clients ]] || return 0
    while read -r client; do alive "$client" && echo "$client"; done <"$pipe_dir/clients"
}}
case $command in
get_server_list) alive "$server" && echo "$server" ;;
start_server) # of several first clients one has it started, the others wait
    if (set -o noclobber && : >"$pipe_dir/starting") 2>/dev/null; then
        launch "${{0%-control}}-server"
        echo "$launched" >"$pipe_dir/server"
    else
        until [[ -s $pipe_dir/server ]]; do sleep 0.05; done
    fi
    ;;
get_server_status)
    [[ $argument == "$server" ]] || {{ echo "Server $argument not found"; exit 1; }}
    [[ -e $state/stays-faulty || -n $(clients) ]] || rm -f "$pipe_dir/status"
    cat "$pipe_dir/status" 2>/dev/null || echo ACTIVE
    ;;
get_client_list) clients ;;
ps)
    echo "PID   ID  SERVER   DEVICE             NAMESPACE      COMMAND"
    clients | while read -r client; do echo "$client 0 $server GPU-a 4026531836 python"; done
    ;;
terminate_client)
    left=$(clients | grep -vx "$rest")
    printf '%s\\n' "$left" >"$pipe_dir/clients"
    ;;
quit)
    [[ -e $state/stubborn ]] && exit 0
    alive "$server" && kill "$server"
    kill "$pid"
    ;;
esac
exit 0
"""


@dataclass
class Machine:
    """The folder of the stand-ins, and a run directory beside it."""

    folder: Path
    run_dir: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def pipes(self, unit: str) -> Path:
        return self.run_dir / f"mps-{unit}"

    def script(self, *arguments: str, deadline_s: int = 10) -> subprocess.CompletedProcess[str]:
        """Runs start_MPS.sh on this machine, which has no other program than it needs."""
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments, "--run-dir", str(self.run_dir), "--deadline", str(deadline_s)],
            env={"PATH": str(self.bin), "HOME": "/"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ask(self, unit: str, question: str) -> str:
        """One command for the daemon of a unit."""
        done = subprocess.run(
            [self.bin / "nvidia-cuda-mps-control"],
            input=f"{question}\n",
            env={"PATH": str(self.bin), "CUDA_MPS_PIPE_DIRECTORY": str(self.pipes(unit))},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout

    def start_server(self, unit: str) -> int:
        """A server, as the first client of a daemon has it started; answers its process id."""
        self.ask(unit, f"start_server -uid {os.getuid()}")
        return int((self.pipes(unit) / "server").read_text())

    def add_client(self, unit: str, pid: int) -> None:
        """From now on a process is a client of the daemon."""
        with (self.pipes(unit) / "clients").open("a") as file:
            file.write(f"{pid}\n")

    def make_faulty(self, unit: str) -> None:
        """The server of a daemon has a fault until its clients have gone."""
        (self.pipes(unit) / "status").write_text("FAULT\n")

    def mode(self, uuid: str) -> str:
        return (self.state / f"mode.{uuid}").read_text()

    def set(self, name: str, on: bool = True) -> None:
        """Switch one of the stand-ins' troubles on or off."""
        if on:
            (self.state / name).touch()
        else:
            (self.state / name).unlink()

    def calls(self) -> list[str]:
        path = self.state / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @contextlib.asynccontextmanager
    async def heard(self) -> AsyncIterator[asyncio.StreamReader]:
        """Commands that daemons are given, and `hang` for a start that hangs: a line each, as they come."""
        path, reader = self.state / "heard", asyncio.StreamReader()
        os.mkfifo(path)
        # Open for writing, too: whoever writes comes and goes, and the last one is not the end.
        pipe = os.fdopen(os.open(path, os.O_RDWR | os.O_NONBLOCK), "r+b", buffering=0)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        try:
            yield reader
        finally:
            path.unlink()
            transport.close()

    def take_calls(self) -> list[str]:
        calls = self.calls()
        (self.state / "calls").unlink(missing_ok=True)
        return calls

    def daemons(self) -> list[int]:
        """Processes of daemons and servers that are alive."""
        path = self.state / "daemons"
        pids = [int(line) for line in path.read_text().split()] if path.exists() else []
        return [pid for pid in pids if _is_daemon(pid)]


def end(pid: int) -> None:
    """Kills a process and waits until it has ended, whoever is to reap it."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([descriptor], [], [], 30)[0]
    finally:
        os.close(descriptor)


def _is_daemon(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.startswith("Name:\tnvidia-cuda-mps") and "State:\tZ" not in status


def make_machine(folder: Path, gpus: dict[str, str], *, control: bool = True) -> Machine:
    """A machine with these GPUs (uuid -> compute mode), or without the program that controls MPS."""
    machine = Machine(folder, folder / "run")
    machine.state.mkdir()
    machine.bin.mkdir()
    for name in _NEEDED:
        program = shutil.which(name)
        assert program is not None, name
        (machine.bin / name).symlink_to(program)
    _write_program(machine.bin / "nvidia-smi", _NVIDIA_SMI.format(state=machine.state))
    if control:
        add_control(machine)
    (machine.state / "gpus").write_text("".join(f"{uuid} Disabled\n" for uuid in gpus))
    for uuid, mode in gpus.items():
        (machine.state / f"mode.{uuid}").write_text(mode)
    return machine


def add_control(machine: Machine) -> None:
    """Installs the program that controls MPS."""
    _write_program(machine.bin / "nvidia-cuda-mps-control", _CONTROL.format(state=machine.state))
    _write_program(machine.bin / "nvidia-cuda-mps-server", _CONTROL.format(state=machine.state))


def _write_program(path: Path, text: str) -> None:
    path.write_text(text.replace("#!/usr/bin/env bash", f"#!{shutil.which('bash')}"))
    path.chmod(0o755)


@contextlib.contextmanager
def machine_in(folder: Path) -> Iterator[Machine]:
    """A machine with two GPUs, one of which has a compute mode of its own; nothing of it is left."""
    machine = make_machine(folder, {"GPU-a": "Default", "GPU-b": "Prohibited"})
    try:
        yield machine
    finally:
        for pid in machine.daemons():
            end(pid)
