"""Bytes that one batch moves, under two models: every operator alone, and elementwise operators fused.

Weights are read once per batch in both. Memory that a view shares with its source is counted as the source's.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from efserve.graph_cost.graph import Op, Tensor
from efserve.graph_cost.operators import ELEMENTWISE, MOVES


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one batch; weights are counted in `unfused_bytes` and `fused_bytes` too."""

    weight_bytes: int
    unfused_bytes: int
    fused_bytes: int
    largest_step_bytes: int  # of activations that one fused operator reads and writes


def traffic(ops: Sequence[Op], outputs: frozenset[str]) -> Traffic:
    """What the operators move; `outputs` are the storages of the graph's outputs. Unknown sizes count nothing."""
    running = [op for op in ops if not op.is_view]
    weight_bytes = _weight_bytes(running)
    unfused = sum(_read(op, t) for op in running for t in activations(op))
    unfused += sum(t.bytes for op in running for t in op.outputs)
    steps = _Fusion(outputs).steps(running)
    return Traffic(weight_bytes, weight_bytes + unfused, weight_bytes + sum(steps), max(steps, default=0))


def activations(op: Op) -> list[Tensor]:
    """The inputs that differ from batch to batch, each once; of a table of weights, the rows that are picked."""
    picks = op.kind in MOVES
    found = {t.storage: t for t in op.given if (not t.is_weight or picks) and t.value is None}
    return list(found.values())


def _read(op: Op, tensor: Tensor) -> int:
    """What moves data reads no more than it writes."""
    return min(tensor.bytes, sum(t.bytes for t in op.outputs)) if op.kind in MOVES else tensor.bytes


def _weight_bytes(ops: Iterable[Op]) -> int:
    """Each weight once, however often it is used."""
    sizes: dict[str, int] = {}
    for op in ops:
        for tensor in op.given if op.kind not in MOVES else ():
            if tensor.is_weight:
                sizes[tensor.storage] = max(sizes.get(tensor.storage, 0), tensor.bytes)
    return sum(sizes.values())


@dataclass(slots=True)
class _Fusion:
    """Gathers operators into steps: an elementwise one joins the step that made its latest full-size input."""

    outputs: frozenset[str]
    _step_of: dict[str, int] = field(default_factory=dict)  # storage -> the step that made it
    _made_at: dict[str, int] = field(default_factory=dict)  # storage -> when, in order of the operators
    _unpacked: dict[str, Tensor] = field(default_factory=dict)  # storage out of a DequantizeLinear -> its source

    def steps(self, ops: Sequence[Op]) -> list[int]:
        """Bytes of activations that each step reads and writes."""
        reads: dict[int, dict[str, int]] = defaultdict(dict)
        made: dict[str, Tensor] = {}
        read_by: dict[str, set[int]] = defaultdict(set)
        for at, op in enumerate(ops):
            if op.kind == "DequantizeLinear":  # the reader unpacks as it reads
                self._unpacked[op.outputs[0].storage] = self._source(op.given[0])
                continue
            step = self._joined(op, at)
            for tensor in activations(op):
                source = self._source(tensor)
                read_by[source.storage].add(step)
                if self._step_of.get(source.storage) != step:
                    reads[step][source.storage] = max(
                        reads[step].get(source.storage, 0), min(_read(op, tensor), source.bytes)
                    )
            for tensor in op.outputs:
                self._step_of[tensor.storage], self._made_at[tensor.storage] = step, at
                made[tensor.storage] = tensor
        total: dict[int, int] = defaultdict(int)
        for step, sizes in reads.items():
            total[step] += sum(sizes.values())
        for storage, tensor in made.items():
            step = self._step_of[storage]
            if storage in self._final() or read_by[storage] - {step}:
                total[step] += tensor.bytes
        return list(total.values())

    def _joined(self, op: Op, at: int) -> int:
        if op.kind in ELEMENTWISE:
            full = [t for t in activations(op) if t.size == op.outputs[0].size]
            made_here = [t.storage for t in full if t.storage in self._step_of]
            if made_here:
                return self._step_of[max(made_here, key=self._made_at.__getitem__)]
        return at

    def _source(self, tensor: Tensor) -> Tensor:
        return self._unpacked.get(tensor.storage, tensor)

    def _final(self) -> set[str]:
        """Storages that somebody reads when the graph has run."""
        return {self._unpacked[s].storage if s in self._unpacked else s for s in self.outputs}
