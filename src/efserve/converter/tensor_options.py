"""`--input-shape` and `--dtype`: from the words of the command line to the inputs of a model."""

from collections.abc import Sequence

from efserve.errors import UsageError
from efserve.tensors import NUMPY_DTYPES, Shape, TensorSpec

_ALIASES = {"FLOAT16": "FP16", "FLOAT32": "FP32", "FLOAT": "FP32", "FLOAT64": "FP64", "STRING": "BYTES"}


def parse_inputs(shapes: Sequence[str], dtypes: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Inputs in the order of the shapes; raises UsageError.

    A lone input without a name is called `input`, several are `input_0`, `input_1`, ... One datatype without a name
    is for all inputs, several are for one each; a named one is for that input. FP32 where nothing is said.
    """
    parsed = [parse_shape(text) for text in shapes]
    default = ["input"] if len(parsed) == 1 else [f"input_{index}" for index in range(len(parsed))]
    names = [name or fallback for (name, _), fallback in zip(parsed, default, strict=True)]
    if len(set(names)) < len(names):
        raise UsageError(f"--input-shape names an input twice: {', '.join(names)}")
    datatypes = _datatypes(names, dtypes)
    return tuple(TensorSpec(name, datatypes[name], dims) for name, (_, dims) in zip(names, parsed, strict=True))


def parse_shape(text: str) -> tuple[str, Shape]:
    """Name (empty if not given) and dims of `[name:]d1,d2,...`; `name:` alone is one value per row."""
    name, colon, listed = text.rpartition(":")
    words = [word.strip() for word in listed.split(",")] if listed.strip() or not colon else []
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(
            f"--input-shape '{text}' is not a shape; expected positive sizes without the batch, such as 3,224,224 or "
            "image:3,224,224"
        )
    return name, tuple(map(int, words))


def _datatypes(names: Sequence[str], dtypes: Sequence[str]) -> dict[str, str]:
    found = dict.fromkeys(names, "FP32")
    unnamed = []
    for text in dtypes:
        name, _, word = text.rpartition(":")
        datatype = _ALIASES.get(word.upper(), word.upper())
        if datatype not in NUMPY_DTYPES:
            raise UsageError(f"--dtype '{text}' is not known; expected one of {', '.join(NUMPY_DTYPES)}")
        if not name:
            unnamed.append(datatype)
        elif name in found:
            found[name] = datatype
        else:
            raise UsageError(f"--dtype '{text}' names no input; the inputs are {', '.join(names)}")
    if len(unnamed) == 1:
        unnamed *= len(names)
    if len(unnamed) > len(names):
        raise UsageError(f"--dtype is given {len(unnamed)} times, but there are {len(names)} inputs")
    found.update(zip(names, unnamed, strict=False))
    return found
