"""Tensors for a benchmark from a folder of images, with the preprocessing that the model's config records."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from efserve.client.v2 import ModelInfo
from efserve.errors import ConfigError, UsageError
from efserve.imaging import SUFFIXES, Preprocess, from_parameters, load_image
from efserve.loadtest.inputs import batched
from efserve.tensors import Array, Shape

MAX_BYTES = 1 << 30  # of all images as tensors: they are kept ready to be sent


class _Parameter(msgspec.Struct, frozen=True):
    string_value: str = ""


class _Config(msgspec.Struct, frozen=True):
    parameters: dict[str, _Parameter] = {}


def from_folder(folder: Path, model: ModelInfo, batch: int, shapes: Mapping[str, Shape]) -> list[tuple[Array, ...]]:
    """Requests of `batch` images each, in the order of their names. Raises UsageError."""
    if len(model.inputs) != 1:
        raise UsageError(
            f"--input {folder}: a folder of images needs a model with one input, '{model.name}' has {len(model.inputs)}"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"--input {folder}: no images in this folder; expected files {', '.join(SUFFIXES)}")
    spec = model.inputs[0]
    dims = shapes.get(spec.name, spec.dims[1:] if model.batches else spec.dims)
    preprocess = _preprocess(folder, model)
    images: list[Array] = []
    taken_bytes = 0
    for file in files:
        images.append(load_image(file, replace(spec, dims=dims), preprocess))
        taken_bytes += images[-1].nbytes
        if taken_bytes > MAX_BYTES:
            raise UsageError(
                f"--input {folder}: {len(files)} images take more than {MAX_BYTES >> 20} MiB as tensors, from number "
                f"{len(images)} on; use a folder with fewer"
            )
    try:
        return batched({spec.name: images}, model, batch)
    except ValueError as exc:
        raise UsageError(f"--input {folder}: {exc}") from exc


def _preprocess(folder: Path, model: ModelInfo) -> Preprocess:
    """What the server's config of the model says; without a config, or a word in it, the default."""
    try:
        known = msgspec.convert(model.config or {}, _Config).parameters
        return from_parameters({name: value.string_value for name, value in known.items()})
    except (msgspec.ValidationError, ConfigError) as exc:
        raise UsageError(f"--input {folder}: the preprocessing in the config of '{model.name}': {exc}") from exc
