"""Triton's `reshape`: one tensor's shape for clients and its shape for the model, with the same elements in order."""

from collections.abc import Sequence

from efserve.tensors import Shape


def reshape_problem(dims: Sequence[int], reshape: Sequence[int], *, batches: bool) -> str:
    """Why a tensor of `dims` cannot be one of `reshape` for the model, in Triton's words; empty: it can."""
    if not reshape and not batches:
        return "cannot have empty reshape for non-batching model as scalar tensors are not supported"
    if any(dim < 1 and dim != -1 for dim in reshape):
        return "reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension"
    given, wanted = _between_free(dims), _between_free(reshape)
    if len(given) != len(wanted) and min(len(given), len(wanted)) > 1:
        return "has different number of variable-size dimensions for dims and reshape"
    return "" if given == wanted else "has different size for dims and reshape"


def reshaped(shape: Shape, dims: Sequence[int], target: Sequence[int]) -> Shape:
    """`shape`, which is one of `dims`, as one of `target`: free dimensions keep their order.

    ValueError when it is none of `dims` in their number.
    """
    free = iter([found for found, dim in zip(shape, dims, strict=True) if dim == -1])
    return tuple([next(free) if dim == -1 else dim for dim in target])


def _between_free(dims: Sequence[int]) -> list[int]:
    """Elements of the fixed dimensions before, between and after the free ones."""
    counts = [1]
    for dim in dims:
        if dim == -1:
            counts.append(1)
        else:
            counts[-1] *= dim
    return counts
