"""What efserve does with this machine's GPU, measured in under eight minutes: one table, and the same as JSON.

    python examples/gpu_proof.py [--json FILE] [--section NAME ...] [--budget-s 460] [--cpu]

Needs torch and numpy; sections that need more say what is missing. Each section is a process of its own with its part
of the time, so that a failure is one line and the rest goes on. `--cpu` runs the same sections with tiny sizes on the
CPU: that proves the script, not a GPU.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from gpu_proof_parts.rows import Row, Scale  # noqa: E402  # behind the path that finds it

SCHEMA_VERSION = 1
_START_S = 20.0  # of a process that imports torch, beside the section's own time
_END_S = 5.0  # for a section that was told to stop


def sections() -> dict[str, tuple[float, Callable[[Scale], Iterator[Row]]]]:
    """Name -> seconds, and what is run, in order of importance."""
    from gpu_proof_parts import kernels, networks, serving, sharing

    return {
        "machine": (10, kernels.machine),
        "matrix": (20, kernels.matrix_peak),
        "staging": (30, kernels.staging),
        "resnet50": (110, networks.resnet50),
        "bert": (60, networks.bert),
        "choices": (60, networks.choices),
        "green": (40, sharing.green_contexts),
        "mps": (60, sharing.mps),
        "serving": (90, serving.serving),
    }


def main() -> int:
    options = _options()
    if options.run:
        return _run_section(options.run, Scale(cpu=options.cpu))
    names = options.section or list(sections())
    unknown = [name for name in names if name not in sections()]
    if unknown:
        print(f"Error: there is no section '{unknown[0]}'; choose among {', '.join(sections())}", file=sys.stderr)
        return 2
    deadline_s = time.monotonic() + options.budget_s
    rows: list[Row] = []
    for name in names:
        rows += _measured(name, options.cpu, deadline_s)
    if options.json:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        told = {"schema_version": SCHEMA_VERSION, "cpu": options.cpu, "at": at, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    figures, failed = (sum(map(what, rows)) for what in (lambda row: row.value is not None, lambda row: row.failed))
    print(f"\n{figures} figures; {failed} sections, or parts of them, did not run")
    return 1 if failed == len(rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--section", action="append", help="run only this; repeatable")
    parser.add_argument("--budget-s", type=float, default=460.0, help="seconds for everything (460)")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # a section, in this process, rows as lines of JSON
    return parser.parse_args()


def _run_section(name: str, scale: Scale) -> int:
    """Prints each row as it comes, so that what was measured before a failure is kept."""
    import torch

    _, measure = sections()[name]
    if scale.cpu:
        torch.set_num_threads(1)
    try:
        if not scale.cpu and not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no GPU here; --cpu tries the script without one")
        for row in measure(scale):
            print(json.dumps(asdict(row)), flush=True)
    except Exception as error:  # noqa: BLE001  # the border of a section: whatever fails is one line
        text = " ".join(str(error).split()) or "no message"
        print(json.dumps(asdict(Row(name, "failed", note=f"{type(error).__name__}: {text[:300]}", failed=True))))
    return 0


def _measured(name: str, cpu: bool, deadline_s: float) -> list[Row]:
    """The rows of a section, printed as they are told; its process is gone afterwards, with all that it started."""
    budget_s = min(sections()[name][0] + _START_S, deadline_s - time.monotonic())
    if budget_s < _START_S / 4:
        return [_told(Row(name, "left out", note="the time for everything is used up", failed=True))]
    command = [sys.executable, str(Path(__file__).resolve()), "--run", name, *(["--cpu"] if cpu else [])]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors, start_new_session=True)
        note = ""
        try:
            process.wait(budget_s)
        except subprocess.TimeoutExpired:
            note = f"stopped after {budget_s:.0f} s"
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        finally:
            _kill_group(process)
        said.seek(0)
        errors.seek(0)
        rows = [Row(**json.loads(line)) for line in said if line.startswith("{")]
        if not note and process.returncode:
            last = errors.read().strip().splitlines()[-1:] or ["no message"]
            note = f"ended with code {process.returncode}: {last[0][:300]}"
    if note:
        rows.append(Row(name, "failed", note=note, failed=True))
    return [_told(row) for row in rows]


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _told(row: Row) -> Row:
    value = "" if row.value is None else f"{row.value:,.4g} {row.unit}"
    print(f"{row.section:10} {row.name:44.44} {'-' if row.failed else value:>18}  {row.note}", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
