"""The cost of one batch of a graph: operations by precision, bytes, and what could not be counted."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from efserve.graph_cost.graph import Graph
from efserve.graph_cost.operators import work_of
from efserve.graph_cost.shapes import Walk
from efserve.graph_cost.traffic import traffic
from efserve.tensors import Shape


@dataclass(frozen=True, slots=True)
class GraphCost:
    """What one batch costs; docs/roofline.md has the rules."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions, matrix products, attention, recurrent cells
    operations: dict[str, int]  # precision -> operations, two for each multiply-accumulate
    weight_bytes: int  # read once per batch
    unfused_bytes: int  # weights, and what every operator alone reads and writes
    fused_bytes: int  # weights, and what is left of it when elementwise operators are fused
    working_set_bytes: int  # weights, and the most that one fused operator reads and writes
    guessed: dict[str, int]  # operators counted as elementwise, since they are not known -> how many
    left_out: dict[str, int]  # operators that are not counted: of unknown shapes, or bodies of control flow -> how many

    @property
    def total_operations(self) -> int:
        """Operations of all precisions."""
        return sum(self.operations.values())


def count(graph: Graph, shapes: Mapping[str, Shape]) -> GraphCost:
    """The cost of one batch for inputs of these whole shapes, one for each of the graph's inputs."""
    walk = Walk(graph)
    walk.run(shapes)
    macs, operations = 0, defaultdict[str, int](int)
    guessed, left_out = list[str](), list(walk.not_entered)
    for op in walk.ops:
        if not op.has_shapes:
            left_out.append(op.full_kind)
            continue
        work = work_of(op)
        macs += work.macs
        operations[work.precision] += work.operations
        if not work.is_known:
            guessed.append(op.full_kind)
    moved = traffic(walk.ops, walk.outputs)
    return GraphCost(
        parameters=graph.parameters,
        macs=macs,
        operations={precision: number for precision, number in sorted(operations.items()) if number},
        weight_bytes=moved.weight_bytes,
        unfused_bytes=moved.unfused_bytes,
        fused_bytes=moved.fused_bytes,
        working_set_bytes=moved.weight_bytes + moved.largest_step_bytes,
        guessed=_counted(guessed),
        left_out=_counted(left_out),
    )


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(kinds).items()))
