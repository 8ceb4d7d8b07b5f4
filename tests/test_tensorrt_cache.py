"""Plans that are kept: found, sealed, and built by one process at a time, whatever becomes of it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from efserve.engines.tensorrt_cache import PlanCache, read_secret
from efserve.engines.tensorrt_plan import Machine
from efserve.errors import LoadFailed
from plan_builder import BUILD, SECRET


def cache(folder: Path, secret: bytes = SECRET) -> PlanCache:
    folder.mkdir(exist_ok=True)
    return PlanCache(folder, secret)


def test_a_plan_is_found_again(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    assert kept.find(BUILD) is None
    kept.store(BUILD, b"plan")
    assert kept.find(BUILD) == b"plan"
    assert kept.find(replace(BUILD, precision="fp16")) is None
    assert (tmp_path / f"model.{BUILD.key}.plan").read_bytes() == b"plan"
    assert '"tensorrt": "11.1"' in (tmp_path / f"model.{BUILD.key}.json").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_plan_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    cache(tmp_path, b"t" * 32).store(BUILD, b"their plan")
    assert cache(tmp_path).find(BUILD) is None
    (tmp_path / f"model.{BUILD.key}.seal").unlink()
    assert cache(tmp_path).find(BUILD) is None


def test_a_plan_that_was_changed_or_moved_is_not_taken(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.store(BUILD, b"plan")
    kept.plan_path(BUILD).write_bytes(b"another plan")
    assert kept.find(BUILD) is None
    kept.store(BUILD, b"plan")
    other = replace(BUILD, precision="fp16")
    for suffix in (".plan", ".seal"):
        kept.plan_path(BUILD).with_suffix(suffix).rename(kept.plan_path(other).with_suffix(suffix))
    assert kept.find(other) is None


def test_timings_belong_to_a_kind_of_machine(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    assert kept.timings(BUILD) == b""
    kept.store_timings(BUILD, b"timings")
    assert kept.timings(replace(BUILD, precision="int8", onnx_sha256="cd")) == b"timings"
    assert kept.timings(replace(BUILD, machine=Machine("GPU", "9.0", "11.2"))) == b""


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    first = read_secret(tmp_path / "state")
    assert len(first) == 32
    assert read_secret(tmp_path / "state") == first
    assert (tmp_path / "state" / "plan-seal").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["plan-seal"]


def test_a_secret_that_cannot_be_kept_passes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert read_secret(tmp_path / "file") != read_secret(tmp_path / "file")


def test_a_broken_secret_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "plan-seal").write_bytes(b"")
    assert len(read_secret(tmp_path)) == 32


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is building, until a line on its stdin."""
    command = [sys.executable, str(Path(__file__).with_name("plan_builder.py")), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        yield process
        process.kill()


def finish(builder: subprocess.Popen[str]) -> None:
    assert builder.stdin is not None
    builder.stdin.write("finish\n")
    builder.stdin.flush()


def test_whoever_waits_finds_the_plan(tmp_path: Path, builder: subprocess.Popen[str]) -> None:
    told: list[str] = []
    finish(builder)
    with cache(tmp_path).building(BUILD, 30, told.append):
        assert cache(tmp_path).find(BUILD) == b"plan"
    assert builder.wait(10) == 0


def test_a_builder_that_dies_lets_the_next_one_build(tmp_path: Path, builder: subprocess.Popen[str]) -> None:
    builder.kill()
    with cache(tmp_path).building(BUILD, 30, print):
        assert cache(tmp_path).find(BUILD) is None


def test_a_builder_that_never_ends_is_not_waited_for_for_ever(tmp_path: Path, builder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(LoadFailed, match=r"another process has been building the same plan for 0.2 s; it holds .*lock"),
        cache(tmp_path).building(BUILD, 0.2, print),
    ):
        raise AssertionError
    assert builder.poll() is None


def test_builds_of_other_plans_do_not_wait(tmp_path: Path, builder: subprocess.Popen[str]) -> None:
    with cache(tmp_path).building(replace(BUILD, precision="fp16"), 0.1, print):
        assert builder.poll() is None
