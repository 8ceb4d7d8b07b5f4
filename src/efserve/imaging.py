"""Images as a model wants them: from a file to an array of the input's shape.

Owns the preprocessing and how `config.pbtxt` records it, as parameters that Triton passes through unread:
`image.resize` (shorter side before the centre crop, in pixels), `image.interpolation`, `image.mean` and `image.std`
(per channel, of values in 0..1). Without them an image is resized to the input's size and its values scaled to 0..1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from efserve.errors import ConfigError, UsageError
from efserve.tensors import NUMPY_DTYPES, Array, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_INTERPOLATIONS = ("nearest", "box", "bilinear", "bicubic")  # as Pillow names them


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What happens to an image before it is an input; `mean` and `std` are empty or have one value per channel."""

    resize: int = 0  # shorter side before the centre crop; 0: straight to the input's height and width
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def parameters(self) -> dict[str, str]:
        """The parameters of a config that say the same."""
        said = {"image.interpolation": self.interpolation}
        if self.resize:
            said["image.resize"] = str(self.resize)
        if self.mean:
            said["image.mean"] = ",".join(map(str, self.mean))
            said["image.std"] = ",".join(map(str, self.std))
        return said


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """How an input holds an image."""

    channels: int
    height: int
    width: int
    channels_last: bool


def from_parameters(parameters: Mapping[str, str]) -> Preprocess:
    """The preprocessing that a config's parameters tell; raises ConfigError for values that make no sense."""
    default = Preprocess()
    resize = parameters.get("image.resize", str(default.resize))
    interpolation = parameters.get("image.interpolation", default.interpolation)
    mean, std = _numbers(parameters, "image.mean"), _numbers(parameters, "image.std")
    if not (resize.isascii() and resize.isdigit()):
        raise ConfigError(f"config parameter image.resize is '{resize}', expected a number of pixels")
    if interpolation not in _INTERPOLATIONS:
        known = ", ".join(_INTERPOLATIONS)
        raise ConfigError(f"config parameter image.interpolation is '{interpolation}', expected one of {known}")
    if len(mean) != len(std) or 0.0 in std:
        raise ConfigError("config parameters image.mean and image.std need as many values each, none of std zero")
    return Preprocess(int(resize), interpolation, mean, std)


def _numbers(parameters: Mapping[str, str], key: str) -> tuple[float, ...]:
    text = parameters.get(key, "")
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError as exc:
        raise ConfigError(f"config parameter {key} is '{text}', expected numbers such as 0.485,0.456,0.406") from exc


def layout_of(spec: TensorSpec) -> ImageLayout:
    """Where channels, height and width of an input are (-1: free); raises UsageError for an input that is no image."""
    if len(spec.dims) == 3 and spec.datatype in ("UINT8", "FP16", "FP32", "FP64"):
        if spec.dims[0] in (1, 3):
            return ImageLayout(*spec.dims, channels_last=False)
        if spec.dims[2] in (1, 3):
            return ImageLayout(spec.dims[2], spec.dims[0], spec.dims[1], channels_last=True)
    raise UsageError(
        f"input '{spec.name}' takes {spec.datatype} {list(spec.dims)}, which is no image of 1 or 3 channels; give its "
        "values as .npy or .json"
    )


def load_image(path: Path, spec: TensorSpec, preprocess: Preprocess) -> Array:
    """One image as the input `spec` wants it, [C, H, W] or [H, W, C]; free sizes are the image's own.

    Raises UsageError for a file that is no image. UINT8 inputs get the pixels as they are, others the scaled values.
    """
    from PIL import Image, ImageOps

    layout = layout_of(spec)
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            image = upright.convert("L" if layout.channels == 1 else "RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as exc:
        raise UsageError(f"{path} cannot be read as an image: {exc}") from exc
    pixels = np.asarray(_fit(image, layout, preprocess)).reshape(*_size(image, layout), layout.channels)
    return _placed(pixels, layout, spec, preprocess)


def is_image(spec: TensorSpec) -> bool:
    """Whether an input takes images."""
    try:
        layout_of(spec)
    except UsageError:
        return False
    return True


def random_image(rng: np.random.Generator, spec: TensorSpec, preprocess: Preprocess) -> Array:
    """An image of blurred patches, coarse and fine, in random colours, with noise, as the input `spec` wants it.

    The input must have no free sizes.
    """
    from PIL import Image

    layout = layout_of(spec)
    size = (layout.width, layout.height)
    planes = []
    for _ in range(layout.channels):
        patches = np.zeros((layout.height, layout.width))
        for cells in (2, 5, 16):
            coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
            patches += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) * rng.random()
        planes.append(patches + 0.1 * rng.standard_normal(patches.shape))
    values = np.stack(planes, axis=-1)
    low, high = values.min(), values.max()
    pixels = (255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)
    return _placed(pixels, layout, spec, preprocess)


def _placed(pixels: Array, layout: ImageLayout, spec: TensorSpec, preprocess: Preprocess) -> Array:
    """Pixels [height, width, channels] of 0..255 as the input wants them."""
    values = pixels if spec.datatype == "UINT8" else _scaled(pixels, preprocess)
    placed = values if layout.channels_last else values.transpose(2, 0, 1)
    return np.ascontiguousarray(placed, NUMPY_DTYPES[spec.datatype])


def _size(image: "Image", layout: ImageLayout) -> tuple[int, int]:
    """Height and width of the array."""
    return (
        layout.height if layout.height >= 0 else image.height,
        layout.width if layout.width >= 0 else image.width,
    )


def _fit(image: "Image", layout: ImageLayout, preprocess: Preprocess) -> "Image":
    """The image at the input's size: resized, or resized by its shorter side and cropped around its centre."""
    from PIL.Image import Resampling

    resampling = Resampling[preprocess.interpolation.upper()]
    height, width = _size(image, layout)
    if not preprocess.resize:
        return image.resize((width, height), resampling)
    shorter = min(image.width, image.height)
    resized = image.resize(
        (preprocess.resize * image.width // shorter, preprocess.resize * image.height // shorter), resampling
    )
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def _scaled(pixels: Array, preprocess: Preprocess) -> Array:
    values = pixels.astype(np.float32) / np.float32(255)
    if not preprocess.mean:
        return values
    return (values - np.asarray(preprocess.mean, np.float32)) / np.asarray(preprocess.std, np.float32)
