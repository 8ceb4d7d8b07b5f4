"""From which shape to which each input may go: TensorRT optimises for such ranges. Pure.

The batch goes from 1 to the config's `max_batch_size` and is best where the scheduler is told to prefer it. A config
says nothing of other free dimensions, so the ranges of those are parameters of `config.pbtxt`:

    parameters { key: "profile:ids" value { string_value: "1 128 512" } }      dims: [-1]
    parameters { key: "profile:image" value { string_value: "3x64x64 3x224x224 3x512x512" } }
"""

import re
from dataclasses import dataclass

from efserve.errors import ConfigError
from efserve.model_config import ModelConfig
from efserve.tensors import Shape, TensorSpec

_PREFIX = "profile:"
_SHAPE = re.compile(r"\d+(x\d+)*")


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The shapes of one input, batch included: the least, the one to be fastest at, and the most."""

    name: str
    least: Shape
    best: Shape
    most: Shape

    def holds(self, shape: Shape) -> bool:
        """True when the shape lies within the range."""
        return len(shape) == len(self.least) and all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)
        )


def shape_ranges(config: ModelConfig) -> tuple[ShapeRange, ...]:
    """The range of each input of a complete config, in its order; ConfigError where a free dimension has none."""
    known = {spec.name for spec in config.inputs}
    for key in config.parameters:
        if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in known:
            raise ConfigError(
                f"config of '{config.name}': parameter {key} names no input; there are {', '.join(sorted(known))}"
            )
    return tuple(_range(config, spec) for spec in config.inputs)


def best_batch(config: ModelConfig) -> int:
    """The batch to be fastest at: the largest preferred size, else the maximum."""
    preferred = config.dynamic_batching.preferred_batch_sizes if config.dynamic_batching else ()
    return max(preferred, default=config.max_rows)


def _range(config: ModelConfig, spec: TensorSpec) -> ShapeRange:
    edges = _edges(config, spec)
    if not config.batches:
        return ShapeRange(spec.name, *edges)
    batches = (1, best_batch(config), config.max_rows)
    least, best, most = ((batch, *edge) for batch, edge in zip(batches, edges, strict=True))
    return ShapeRange(spec.name, least, best, most)


def _edges(config: ModelConfig, spec: TensorSpec) -> tuple[Shape, Shape, Shape]:
    key = _PREFIX + spec.name
    text = config.parameters.get(key)
    example = " ".join("x".join(str(size if dim < 0 else dim) for dim in spec.dims) for size in (1, 128, 512))
    if text is None:
        if spec.is_static:
            return spec.dims, spec.dims, spec.dims
        raise ConfigError(
            f"config of '{config.name}': input '{spec.name}' has free dimensions {list(spec.dims)}, whose range "
            f'TensorRT must know; add parameters {{ key: "{key}" value {{ string_value: "LEAST BEST MOST" }} }}, '
            f'such as "{example}"'
        )
    words = text.split()
    shapes = [tuple(map(int, word.split("x"))) for word in words if _SHAPE.fullmatch(word)]
    if not (len(words) == len(shapes) == 3 and all(_fits(spec, shape) for shape in shapes) and _ascend(shapes)):
        raise ConfigError(
            f"config of '{config.name}': parameter {key} is '{text}', expected three ascending shapes of dims "
            f'{list(spec.dims)} without the batch, such as "{example}"'
        )
    least, best, most = shapes
    return least, best, most


def _fits(spec: TensorSpec, shape: Shape) -> bool:
    return len(shape) == len(spec.dims) and all(dim in (-1, size) for dim, size in zip(spec.dims, shape, strict=True))


def _ascend(shapes: list[Shape]) -> bool:
    return all(0 < low <= mid <= high for low, mid, high in zip(*shapes, strict=True))
