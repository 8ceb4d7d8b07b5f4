"""Requests whose tensors lie in shared memory instead of in the messages (`--shared-memory system`).

As with perf_analyzer, requests under way at once share their inputs and write into the same outputs: what they cost is
measured, what is in the outputs is not looked at.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from efserve.client.memory import Places, SharedRegion, Span
from efserve.client.v2 import ModelInfo, V2Server
from efserve.errors import RemoteError
from efserve.tensors import Array, to_wire

_ALIGN_BYTES = 64


@asynccontextmanager
async def in_shared_memory(
    server: V2Server, model: ModelInfo, requests: Sequence[Sequence[Array]], outputs: Mapping[str, Array]
) -> AsyncIterator[tuple[Places, ...]]:
    """The places of each request's tensors in one region, registered with the server meanwhile.

    `outputs` are those of one answer, as large as any. Raises RemoteError where the server does not take part.
    """
    wires = [[to_wire(array) for array in arrays] for arrays in requests]
    sizes = [[len(wire) for wire in single] for single in wires]
    output_sizes = [len(to_wire(outputs[spec.name])) for spec in model.outputs]
    total = sum(_aligned(size) for single in sizes for size in single) + sum(map(_aligned, output_sizes))
    with SharedRegion(max(1, total)) as region:
        found, end = _spans(region, output_sizes, 0)
        places = []
        for single in wires:
            inputs, begin = _spans(region, [len(wire) for wire in single], end)
            for span, wire in zip(inputs, single, strict=True):
                region.map[span.offset : span.offset + span.byte_size] = bytes(wire)
            places.append(Places(inputs, found))
            end = begin
        await server.register(region)
        try:
            yield tuple(places)
        finally:
            with suppress(RemoteError):  # it has gone, and with it the registration
                await server.unregister(region)


def _spans(region: SharedRegion, sizes: Sequence[int], begin: int) -> tuple[tuple[Span, ...], int]:
    """Places of so many bytes, one after the other from `begin`, and where they end."""
    spans = []
    for size in sizes:
        spans.append(Span(region.name, begin, size))
        begin += _aligned(size)
    return tuple(spans), begin


def _aligned(size: int) -> int:
    return -(-size // _ALIGN_BYTES) * _ALIGN_BYTES
