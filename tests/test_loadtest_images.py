"""Folders of images as requests: the order, the batches, the preprocessing of the server's config."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efserve.client.v2 import ModelInfo
from efserve.errors import UsageError
from efserve.imaging import Preprocess, load_image
from efserve.loadtest.images import from_folder
from efserve.tensors import TensorSpec

INPUT = TensorSpec("image", "FP32", (-1, 3, 8, 8))
PARAMETERS = {
    "image.interpolation": {"string_value": "bicubic"},
    "image.resize": {"string_value": "10"},
    "image.mean": {"string_value": "0.5,0.4,0.3"},
    "image.std": {"string_value": "0.2,0.2,0.1"},
}


def model(*inputs: TensorSpec, config: dict[str, Any] | None = None) -> ModelInfo:
    return ModelInfo("m", "", "", inputs or (INPUT,), (), 8, config)


def folder_of(path: Path, count: int) -> Path:
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"{index}.png")
    (path / "notes.txt").write_text("no image")
    return path


def test_images_are_batched_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 5)
    one, two = from_folder(folder, model(), 2, {})
    spec = TensorSpec("image", "FP32", (3, 8, 8))
    expected = [load_image(folder / f"{index}.png", spec, Preprocess()) for index in range(4)]
    assert (one[0] == np.stack(expected[:2])).all()
    assert (two[0] == np.stack(expected[2:])).all()


def test_the_servers_config_says_how_to_prepare_them(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 1)
    ((array,),) = from_folder(folder, model(config={"parameters": PARAMETERS}), 1, {})
    preprocess = Preprocess(10, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    expected = load_image(folder / "0.png", TensorSpec("image", "FP32", (3, 8, 8)), preprocess)
    assert (array[0] == expected).all()


def test_free_sizes_are_given_by_shape_or_are_the_images_own(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 1)
    free = model(TensorSpec("image", "FP32", (-1, 3, -1, -1)))
    assert from_folder(folder, free, 1, {})[0][0].shape == (1, 3, 12, 16)
    assert from_folder(folder, free, 1, {"image": (3, 4, 4)})[0][0].shape == (1, 3, 4, 4)


def test_what_cannot_be_sent_is_one_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, info, says in (
        (empty, model(), "no images in this folder"),
        (folder_of(tmp_path, 1), model(INPUT, INPUT), "a model with one input, 'm' has 2"),
        (tmp_path, model(TensorSpec("x", "FP32", (-1, 4))), "which is no image of 1 or 3 channels"),
        (tmp_path, model(config={"parameters": {"image.mean": {"string_value": "x"}}}), "image.mean is 'x'"),
        (tmp_path, model(config={"parameters": 3}), "the preprocessing in the config of 'm'"),
    ):
        with pytest.raises(UsageError) as caught:
            from_folder(folder, info, 1, {})
        assert says in str(caught.value)
