"""Finding models, versions and engines on disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from efserve.errors import ConfigError, NotFound, UsageError
from efserve.repository import read_labels, read_model, scan


def make(root: Path, name: str, files: tuple[str, ...], config: str | None = None) -> Path:
    for file in files:
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if config is not None:
        (root / name / "config.pbtxt").write_text(config)
    return root / name


def test_models_versions_and_engines(tmp_path: Path) -> None:
    make(tmp_path, "b", ("1/model.onnx", "2/model.pt", "2/model.onnx", "10/model.pt", "notes/readme", "01/model.pt"))
    make(tmp_path, "a", ("1/model.py",))
    make(tmp_path, ".hidden", ("1/model.onnx",))
    a, b = scan([tmp_path]).models
    assert (a.name, b.name, b.versions) == ("a", "b", (1, 2, 10))
    assert (a.engines(1), b.engines(10)) == (("python",), ("torchscript",))
    assert b.engines(2) == ("onnx", "torchscript", "openvino", "tensorrt")
    assert b.usual_engines(2) == ("onnx", "torchscript")
    assert b.resolve(2).engine == "onnx"
    assert b.resolve(2, "torchscript").engine == "torchscript"
    with pytest.raises(ConfigError, match=r"version 10 of 'b' has no model\.onnx for engine onnx"):
        b.resolve(10, "onnx")


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", (3,)),
        ("version_policy { all { } }", (1, 2, 3)),
        ("version_policy { latest { num_versions: 2 } }", (2, 3)),
        ("version_policy { specific { versions: [1, 3, 9] } }", (1, 3)),
    ],
)
def test_version_policy(tmp_path: Path, policy: str, served: tuple[int, ...]) -> None:
    path = make(tmp_path, "m", ("1/model.onnx", "2/model.onnx", "3/model.onnx"), policy)
    assert read_model(path).served_versions() == served


def test_the_config_decides_engine_and_file(tmp_path: Path) -> None:
    path = make(tmp_path, "m", ("1/model.onnx", "1/net.pt"), 'backend: "pytorch" default_model_filename: "net.pt"')
    assert read_model(path).resolve(1).engine == "torchscript"


def test_a_broken_model_does_not_hide_the_others(tmp_path: Path) -> None:
    make(tmp_path, "good", ("1/model.onnx",))
    make(tmp_path, "bad", ("1/model.onnx",), "oops")
    make(tmp_path, "empty", ("config.pbtxt",))
    found = scan([tmp_path])
    assert [model.name for model in found.models] == ["good"]
    assert sorted(found.errors) == ["bad", "empty"]
    assert "no version folder" in str(found.errors["empty"])


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    make(tmp_path, "m", ("1/model.onnx",))
    with pytest.raises(NotFound, match=r"model 'x' is not in .*; it has: m"):
        scan([tmp_path], ["x"])
    with pytest.raises(UsageError, match="is not a folder"):
        scan([tmp_path / "nowhere"])
    make(tmp_path / "other", "m", ("1/model.onnx",))
    make(tmp_path / "other", "n", ("1/model.onnx",))
    both = scan([tmp_path, tmp_path / "other"])
    assert {name: str(error) for name, error in both.errors.items() if name == "m"} == {
        "m": "model appears in two or more repositories"
    }
    assert [model.name for model in both.models] == ["n"]
    assert [model.name for model in scan([tmp_path / "other", tmp_path / "m" / ".." / "other"]).models] == ["m", "n"]


def test_labels(tmp_path: Path) -> None:
    config = 'output { name: "y" data_type: TYPE_FP32 dims: 2 label_filename: "labels.txt" }'
    path = make(tmp_path, "m", ("1/model.onnx",), config)
    model = read_model(path)
    with pytest.raises(ConfigError, match="label file of output 'y' of 'm' cannot be read"):
        read_labels(path, model.config)
    (path / "labels.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="cannot be read: 'utf-8' codec"):
        read_labels(path, model.config)
    (path / "labels.txt").write_text("cat\ndog\n")
    assert read_labels(path, model.config) == {"y": ("cat", "dog")}
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        read_labels(path, replace(model.config, label_filenames={"y": "labels\0.txt"}))
