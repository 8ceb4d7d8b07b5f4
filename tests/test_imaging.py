"""Images as inputs: sizes, channels, scaling, and the record of it in a config."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from efserve.converter.torchvision_zoo import import_torchvision
from efserve.errors import ConfigError, UsageError
from efserve.imaging import Preprocess, from_parameters, load_image
from efserve.tensors import TensorSpec

FINITE = st.floats(-10, 10).filter(bool)


@given(
    st.integers(0, 999),
    st.sampled_from(["nearest", "box", "bilinear", "bicubic"]),
    st.lists(st.tuples(FINITE, FINITE), max_size=3),
)
def test_parameters_round_trip(resize: int, interpolation: str, channels: list[tuple[float, float]]) -> None:
    mean, std = tuple(m for m, _ in channels), tuple(s for _, s in channels)
    preprocess = Preprocess(resize, interpolation, mean, std)
    assert from_parameters(preprocess.parameters()) == preprocess


def test_config_without_parameters_means_the_default() -> None:
    assert from_parameters({"other": "1"}) == Preprocess()


@pytest.mark.parametrize(
    "parameters",
    [
        {"image.resize": "large"},
        {"image.interpolation": "magic"},
        {"image.mean": "a,b"},
        {"image.mean": "0.5"},
        {"image.mean": "0.5", "image.std": "0"},
    ],
)
def test_senseless_parameters_are_named(parameters: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="config parameter"):
        from_parameters(parameters)


@cache
def torchvision_transforms() -> Any:
    import_torchvision()
    return importlib.import_module("torchvision.transforms.v2.functional")


def save(folder: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], name: str = "image.png") -> Path:
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_gray_image_is_scaled_to_one(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    array = load_image(save(tmp_path, pixels), TensorSpec("input", "FP32", (1, 8, 8)), Preprocess())
    assert array.dtype == np.float32
    assert np.array_equal(array[0], pixels.astype(np.float32) / 255)


def test_box_averages(tmp_path: Path) -> None:
    pixels = np.array([[0, 100], [100, 200]], np.uint8).repeat(8, 0).repeat(8, 1)
    array = load_image(save(tmp_path, pixels), TensorSpec("x", "UINT8", (1, 1, 1)), Preprocess(interpolation="box"))
    assert array.tolist() == [[[100]]]


def test_channels_first_and_last(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    path = save(tmp_path, pixels)
    first = load_image(path, TensorSpec("x", "UINT8", (3, 5, 7)), Preprocess())
    last = load_image(path, TensorSpec("x", "UINT8", (5, 7, 3)), Preprocess())
    assert np.array_equal(first, pixels.transpose(2, 0, 1))
    assert np.array_equal(last, pixels)


def test_free_size_is_the_images_own(tmp_path: Path) -> None:
    path = save(tmp_path, np.zeros((5, 7, 3), np.uint8))
    assert load_image(path, TensorSpec("x", "FP16", (3, -1, -1)), Preprocess()).shape == (3, 5, 7)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new(mode, (6, 4)).save(path)
    assert load_image(path, TensorSpec("x", "FP32", (3, 4, 6)), Preprocess()).shape == (3, 4, 6)


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (256, 256), (100, 120)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_as_torchvision_prepares_it(tmp_path: Path, size: tuple[int, int], interpolation: str) -> None:
    functional = torchvision_transforms()
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = functional.resize(Image.fromarray(pixels), [256], interpolation=interpolation)
    expected = functional.normalize(functional.to_image(functional.center_crop(image, [224])) / 255, mean, std)
    preprocess = Preprocess(256, interpolation, mean, std)
    found = load_image(save(tmp_path, pixels), TensorSpec("x", "FP32", (3, 224, 224)), preprocess)
    assert np.allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("dims", [(2, 8, 8), (10,), (3, 8)])
def test_input_that_is_no_image_is_named(tmp_path: Path, dims: tuple[int, ...]) -> None:
    path = save(tmp_path, np.zeros((8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"input 'x' takes FP32 .*, which is no image of 1 or 3 channels"):
        load_image(path, TensorSpec("x", "FP32", dims), Preprocess())


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.png cannot be read as an image"):
        load_image(tmp_path / "x.png", TensorSpec("x", "FP32", (1, 8, 8)), Preprocess())
