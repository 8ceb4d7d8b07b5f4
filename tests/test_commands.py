"""The command line: quick to start, each option with its field, errors as a sentence and an exit code."""

import dataclasses
import errno
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from efserve.cli import COMMANDS, LazyGroup, main
from efserve.repository import ENGINE_FILES

# Command -> the dataclass that its options become.
CONFIGS = {
    "convert": "efserve.converter.job:ConvertJob",
    "infer": "efserve.predictor.predict:InferJob",
    "serve": "efserve.server.options:ServeConfig",
    "bench": "efserve.loadtest.config:BenchConfig",
    "models": "efserve.inspection.remote:ModelsJob",
    "check": "efserve.inspection.check:CheckJob",
    "devices": "efserve.inspection.devices:DevicesJob",
    "doctor": "efserve.inspection.doctor.diagnose:DoctorJob",
    "compare": "efserve.loadtest.compare:CompareConfig",
    "report": "efserve.reports.report:ReportJob",
    "profile": "efserve.profiler.options:ProfileConfig",
    "plan": "efserve.planning.options:PlanConfig",
    "simulate": "efserve.simulator.job:SimulateConfig",
    "mps": "efserve.partitions.mps_job:MpsJob",
}
# Options about how a command tells its result; the program below it does not know them.
PRINTING = {
    "convert": {"as_json"},
    "infer": {"as_json"},
    "serve": {"verbose"},
    "bench": {"json_file", "csv_file", "plot"},
    "compare": {"json_file"},
    "report": set(),
    "models": {"as_json"},
    "check": {"as_json"},
    "devices": {"as_json"},
    "doctor": {"as_json"},
    "profile": set(),
    "plan": set(),
    "simulate": set(),
    "mps": {"as_json"},
}
ENGINES = {"torch", "onnxruntime", "onnx", "tensorrt"}
HEAVY = ENGINES | {"numpy", "rich", "google", "tritonclient", "matplotlib", "uvicorn", "asyncio", "msgspec"}


def command_named(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules that a process has loaded when `efserve` has run with these arguments."""
    script = (
        "import json, sys\n"
        "from efserve.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_nothing_heavy() -> None:
    assert not modules_after("--help") & HEAVY


def test_version_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "efserve", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("efserve, version 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_no_engine(name: str) -> None:
    assert not modules_after(name, "--help") & ENGINES


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_every_option(name: str) -> None:
    command = command_named(name)
    untold = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
    assert not untold
    assert command.help
    printed = CliRunner().invoke(main, [name, "--help"])
    assert printed.exit_code == 0
    assert max(map(len, printed.output.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_its_field(name: str) -> None:
    module, _, config = CONFIGS[name].partition(":")
    fields = {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), config))}
    options = {option.name for option in command_named(name).params}
    assert options - PRINTING[name] == fields


@pytest.mark.parametrize("name", ["bench", "check", "infer", "profile", "serve"])
def test_every_engine_can_be_chosen(name: str) -> None:
    (engine,) = (option for option in command_named(name).params if option.name == "engine")
    assert isinstance(engine.type, click.Choice)
    assert set(engine.type.choices) == {"auto", *ENGINE_FILES}


def test_every_command_is_checked_here() -> None:
    assert set(COMMANDS) == set(CONFIGS) == set(PRINTING)
    files = {path.stem for path in (Path(main.callback.__code__.co_filename).parent / "commands").glob("[a-z]*.py")}  # type: ignore[union-attr]  # click's own
    assert set(COMMANDS) == files


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["compare", "http://127.0.0.1:9"],
        ["compare", "x=--nonsense", "y="],
        ["devices", "--deadline-s", "x"],
        ["doctor", "--deadline-s", "0"],
        ["profile", "--nonsense"],
        ["profile", "--batches", "0"],
        ["profile", "--shape", "x"],
        ["profile", "--resume", "--force"],
        ["profile", "--model-repository", "no-such-folder"],
        ["profile", "--cores", "100000"],
        ["profile", "--cores", "1", "--shares", "50"],
        ["profile", "--shares", "101"],
        ["profile", "--device", "gpu9"],
        ["simulate"],
        ["mps"],
        ["mps", "restart"],
        ["mps", "start", "--deadline-s", "0"],
        ["simulate", "no-such-plan.json", "--profiles", "no-such-folder", "--arrivals", "never"],
        ["plan"],
        ["plan", "--rate", "digits=100"],
        ["plan", "--rate", "digits=-1", "--slo", "digits=1"],
        ["plan", "--rate", "digits=1", "--slo", "digits=1", "--devices", "x"],
        ["plan", "--rate", "digits=1", "--slo", "digits=1", "--devices", "2xnone"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert line.removeprefix("Error: ")
    assert "Traceback" not in result.output


def test_plot_without_matplotlib_is_told_before_measuring(tmp_path: Path) -> None:
    """In a process where the import of matplotlib is barred, as `sys.modules` documents it."""
    script = "import sys; sys.modules['matplotlib'] = None; from efserve.cli import main; main(['profile', '--plot'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "Error: --plot needs matplotlib: pip install 'efserve[plot]'\n"


class Failing(LazyGroup):
    """A group with one command, which fails so."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__()
        self._failure = failure

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        return click.Command(cmd_name, callback=self._fail)

    def _fail(self) -> None:
        raise self._failure


def during_set_name(failure: BaseException) -> RuntimeError:
    """As Python 3.11 tells of it."""
    error = RuntimeError("Error calling __set_name__ on 'cached_property' instance 'eps' in 'finfo'")
    error.__cause__ = failure
    return error


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (during_set_name(KeyboardInterrupt()), 130, "Interrupted.\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "Error: cannot use /x: Permission denied\n"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 1, "Error: cannot use /x: Read-only file system\n"),
    ],
)
def test_what_a_command_cannot_mend_is_a_sentence(failure: BaseException, code: int, says: str) -> None:
    result = CliRunner().invoke(Failing(failure), ["doctor"])
    assert (result.exit_code, result.output) == (code, says)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["doctor", "--json"], ["devices"]])
def test_output_that_cannot_be_written_is_a_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "efserve", *arguments], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, b"Error: cannot write the output: No space left on device\n")


def test_what_a_terminal_cannot_show_is_spelled_out() -> None:
    script = "import sys; from efserve.cli import main\ntry: main(['--version'])\nfinally: print('\\xb1 \\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.splitlines()[-1] == rb"\xb1 \udcff"


def test_a_name_that_cannot_be_sent_is_a_sentence() -> None:
    result = CliRunner().invoke(main, ["models", "--url", "http://127.0.0.1:9/\u65e5"])
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    "options", [["bench", "--csv", "/proc/1/a/b.csv"], ["compare", "a=", "b=", "--json", "/proc/1/b.json"]]
)
def test_a_place_for_reports_that_is_none_is_told_before_measuring(options: list[str]) -> None:
    result = CliRunner().invoke(main, options)  # in /proc nobody may write, not even root
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: cannot write /proc/1/")
    assert result.stdout == ""


def test_closed_standard_streams_are_not_given_to_what_is_opened_first() -> None:
    script = (
        "import os, sys; from efserve.cli import main\n"
        "for number in range(3): os.close(number)\n"
        "try: main(['--version'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert [os.readlink(f'/proc/self/fd/{number}') for number in range(3)] == ['/dev/null'] * 3\n"
        "assert all(os.get_inheritable(number) for number in range(3))\n"
        "assert [sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno()] == [0, 1, 2]"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


def test_a_fault_of_our_own_keeps_its_traceback() -> None:
    result = CliRunner().invoke(Failing(FileNotFoundError(errno.ENOENT, "No such file", "/x")), ["doctor"])
    assert isinstance(result.exception, FileNotFoundError)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--pairs", "--slo", "5"], "leave it out with --pairs"),
        (["--cores", "1", "--shares", "50"], "give one of the two"),
        (["--resume", "--force"], "give one of the two"),
        (["--roofline", "--pairs", "--json"], "by itself"),
    ],
)
def test_options_of_profile_that_exclude_one_another(options: list[str], says: str) -> None:
    result = CliRunner().invoke(main, ["profile", *options])
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize("given", ["redis,host=x", "local,size=", "-5", "1e6", "٣"])
def test_a_response_cache_that_is_not_here_is_told(given: str) -> None:
    result = CliRunner().invoke(main, ["serve", "--cache-config", given])
    assert result.exit_code == 2
    assert f"the size of the response cache is '{given}', expected a number of bytes" in result.output.replace(
        "\n", " "
    )


@pytest.mark.parametrize("columns", ["50", "80"])
def test_check_breaks_no_name_of_a_field(columns: str) -> None:
    repository = Path(__file__).parents[1] / "model_dir"
    command = [sys.executable, "-m", "efserve", "check", "--model-repository", str(repository)]
    environment = os.environ | {"COLUMNS": columns}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert "max_queue_delay_microseconds" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= int(columns)
