"""Staging and installing: all or nothing, whoever interrupts."""

import os
import resource
import signal
from pathlib import Path

import pytest

from efserve.converter.install import _place, install, signals_wait, staging
from efserve.errors import ConversionFailed, UsageError


def stage_version(stage: Path, text: str, version: int = 1, config: str = "") -> Path:
    """A staged model folder with one version."""
    staged = stage / "net"
    (staged / str(version)).mkdir(parents=True)
    (staged / str(version) / "model.onnx").write_text(text)
    if config:
        (staged / "config.pbtxt").write_text(config)
    return staged


def files(folder: Path) -> dict[str, str]:
    """Text of every file by its path below the folder."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def put(repository: Path, text: str, version: int = 1, config: str = "") -> None:
    with staging(repository / "net") as stage:
        install(stage_version(stage, text, version, config), repository / "net", version)


def test_new_model_appears_whole_and_staging_is_gone(tmp_path: Path) -> None:
    put(tmp_path, "one", config="c")
    assert files(tmp_path) == {"net/1/model.onnx": "one", "net/config.pbtxt": "c"}
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_versions_live_side_by_side_and_are_replaced_alone(tmp_path: Path) -> None:
    put(tmp_path, "one", config="c")
    put(tmp_path, "two", version=2)
    put(tmp_path, "new", version=1, config="d")
    assert files(tmp_path) == {"net/1/model.onnx": "new", "net/2/model.onnx": "two", "net/config.pbtxt": "d"}


def test_failure_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    repository = tmp_path / "made" / "up"

    def interrupted() -> None:
        with staging(repository / "net") as stage:
            stage_version(stage, "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not repository.exists()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    stage_version(tmp_path / ".net.convert", "half")
    with staging(tmp_path / "net") as stage:
        assert not list(stage.iterdir())
    assert not list(tmp_path.iterdir())


def test_version_that_a_killed_run_had_moved_away_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    old = tmp_path / ".net.convert" / "replaced" / "1"
    old.mkdir(parents=True)
    (old / "model.onnx").write_text("old")
    with staging(tmp_path / "net"):
        assert files(tmp_path / "net") == {"1/model.onnx": "old"}


def test_second_converter_of_a_model_is_refused(tmp_path: Path) -> None:
    with staging(tmp_path / "net"), pytest.raises(ConversionFailed, match="another process is converting model 'net'"):
        staging(tmp_path / "net").__enter__()
    with staging(tmp_path / "net"), staging(tmp_path / "other"):
        pass


def test_repository_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"), staging(tmp_path / "file" / "net"):
        pass


def test_exchange_needs_both(tmp_path: Path) -> None:
    new, target = tmp_path / "new", tmp_path / "target"
    target.mkdir()
    with pytest.raises(FileNotFoundError):
        _place(new, target, tmp_path / "spare")
    assert target.is_dir()


def test_signals_act_after_the_block() -> None:
    done = []

    def interrupted() -> None:
        with signals_wait():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the block")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def write_on_a_full_disk(path: Path) -> None:
    """Here, because this process may write no file meanwhile."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        path.write_bytes(b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_disk_that_is_full_is_one_sentence(tmp_path: Path) -> None:
    says = f"model repository {tmp_path} cannot be written: File too large"
    with pytest.raises(UsageError, match=says), staging(tmp_path / "net") as stage:
        write_on_a_full_disk(stage / "model.onnx")
    assert list(tmp_path.iterdir()) == []
