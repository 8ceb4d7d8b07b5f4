"""Optimized forms beside a model: they are found again, and never change an answer whatever happens to them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from efserve.engines import base
from efserve.engines.base import Source
from efserve.engines.kept import Recipe, Shelf
from efserve.model_config import ModelConfig
from efserve.partition import Partition
from efserve.repository import fingerprint
from efserve.tensors import Array

ENGINES = ("onnx", "openvino")
INPUT = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)


def answer(engine: str, folder: Path, keeps: bool = True) -> Array:
    loaded = base.load(engine, Source(folder, ModelConfig("m"), Partition(), keeps=keeps))
    output = np.array(loaded.infer([INPUT])[0])
    loaded.close()
    return output


def forms(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / ".cache").iterdir() if path.is_dir())


def largest_file(form: Path) -> Path:
    return max(form.iterdir(), key=lambda path: path.stat().st_size)


def truncate(form: Path) -> None:
    os.truncate(largest_file(form), 1000)


def overwrite(form: Path) -> None:
    with largest_file(form).open("r+b") as file:
        file.seek(300_000)
        file.write(b"\1\2\3\4" * 1000)


def lose_facts(form: Path) -> None:
    (form / "facts.json").unlink()


def garble_facts(form: Path) -> None:
    (form / "facts.json").write_text('{"model.onnx": 1}')


def lose_weights(form: Path) -> None:
    largest_file(form).unlink()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_form_is_made_once_and_answers_the_same(tmp_path: Path, engine: str) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    plain = answer(engine, folder, keeps=False)
    assert not (folder / ".cache").exists()
    before = fingerprint(folder.parent)
    first = answer(engine, folder)
    (form,) = forms(folder)
    written = form.stat().st_mtime_ns
    second = answer(engine, folder)
    assert forms(folder) == [form]
    assert form.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first, plain)
    np.testing.assert_array_equal(second, plain)
    assert fingerprint(folder.parent) == before  # a server that polls sees no change


@pytest.mark.parametrize("engine", ENGINES)
def test_another_model_of_the_same_size_and_time(tmp_path: Path, engine: str) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn(1))
    path = folder / "model.onnx"
    old, facts = answer(engine, folder), path.stat()
    (old_form,) = forms(folder)
    other = onnx_models.cnn(2)
    assert len(other) == facts.st_size
    path.write_bytes(other)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    new = answer(engine, folder)
    np.testing.assert_array_equal(new, answer(engine, folder, keeps=False))
    assert not np.array_equal(new, old)
    assert old_form not in forms(folder)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("spoil", [truncate, overwrite, lose_facts, garble_facts, lose_weights])
def test_a_spoilt_form_is_made_again(tmp_path: Path, engine: str, spoil: Callable[[Path], None]) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    expected = answer(engine, folder)
    (form,) = forms(folder)
    spoil(form)
    np.testing.assert_array_equal(answer(engine, folder), expected)
    assert forms(folder) == [form]
    np.testing.assert_array_equal(answer(engine, folder), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_copied_repository_has_its_forms(tmp_path: Path, engine: str) -> None:
    folder = onnx_models.save(tmp_path / "a", "m", onnx_models.cnn())
    expected = answer(engine, folder)
    subprocess.run(["cp", "-r", str(tmp_path / "a"), str(tmp_path / "b")], check=True)
    copied = tmp_path / "b" / "m" / "1"
    (form,) = forms(copied)
    written = form.stat().st_ino
    np.testing.assert_array_equal(answer(engine, copied), expected)
    assert [path.stat().st_ino for path in forms(copied)] == [written]


def test_a_form_that_the_library_cannot_read(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    shelf = Shelf(folder, Recipe("onnx", _onnxruntime(), ("model.onnx",)))
    form = shelf.make(lambda made: (made / "model.onnx").write_bytes(b"nonsense"))
    assert form is not None
    np.testing.assert_array_equal(answer("onnx", folder), answer("onnx", folder, keeps=False))


def test_weights_beside_the_model_are_part_of_it(tmp_path: Path) -> None:
    folder = onnx_models.save_with_external_data(tmp_path, "m")
    expected = answer("onnx", folder)
    np.testing.assert_array_equal(answer("onnx", folder), expected)
    with (folder / "model.onnx.data").open("r+b") as file:
        file.write(np.float32(3).tobytes() * 100)
    changed = answer("onnx", folder)
    assert not np.array_equal(changed, expected)
    np.testing.assert_array_equal(changed, answer("onnx", folder, keeps=False))


def test_small_models_have_none(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.identity())
    base.load("onnx", Source(folder, ModelConfig("m"), Partition())).close()
    assert not (folder / ".cache").exists()


def test_where_nothing_can_be_written_the_user_has_the_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    (folder / ".cache").write_text("in the way, as it is for root that folders cannot be closed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    expected = answer("onnx", folder)
    assert len(list((tmp_path / "user" / "efserve").rglob("facts.json"))) == 1
    np.testing.assert_array_equal(answer("onnx", folder), expected)


@pytest.mark.parametrize(("value", "found"), [("off", 0), ("{}/elsewhere", 1)])
def test_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, found: int) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    monkeypatch.setenv("EFSERVE_CACHE", value.format(tmp_path))
    answer("onnx", folder)
    assert len(list(tmp_path.glob("elsewhere/*/onnx-*/facts.json"))) == found
    assert not (folder / ".cache").exists()


def test_nowhere_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    monkeypatch.setenv("EFSERVE_CACHE", os.devnull)
    np.testing.assert_array_equal(answer("onnx", folder), answer("onnx", folder, keeps=False))


@pytest.mark.parametrize("engine", ENGINES)
def test_processes_that_load_at_once(tmp_path: Path, engine: str) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    script = (
        "import sys; from pathlib import Path; from test_engines_kept import answer\n"
        "input(); sys.stdout.buffer.write(answer(sys.argv[1], Path(sys.argv[2])).tobytes())"
    )
    crew = [
        subprocess.Popen(
            [sys.executable, "-c", script, engine, str(folder)],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for process in crew:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=60)[0] for process in crew}
    assert answers == {answer(engine, folder).tobytes()}
    assert len(forms(folder)) == 1


def test_a_process_that_died_while_it_made_a_form_is_not_followed(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    shelf = Shelf(folder, Recipe("x", "1"))
    marks = []

    def write(made: Path) -> None:
        marks.append(made.name)
        assert shelf.make(write) is None  # someone is at it
        (made / "file").write_text("form")

    made = shelf.make(write)
    assert made is not None
    assert shelf.find() == made
    shelf.drop(made)
    mark = folder / ".cache" / marks[0]
    mark.mkdir()
    assert shelf.make(write) is None
    os.utime(mark, (0, 0))  # long ago
    assert shelf.make(write) == made


def test_a_model_that_is_replaced_meanwhile_leaves_no_form(tmp_path: Path) -> None:
    folder = onnx_models.save(tmp_path, "m", onnx_models.cnn())
    shelf = Shelf(folder, Recipe("x", "1"))
    assert shelf.make(lambda made: (folder / "model.onnx").write_bytes(onnx_models.cnn(5))) is None
    assert forms(folder) == []


def _onnxruntime() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"
