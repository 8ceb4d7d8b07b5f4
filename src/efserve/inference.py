"""What travels through the server: an inference request and its outcome.

A request is decoded once, by a codec, into the order of the model's inputs; from there on nobody looks at names. Its
`done` is called exactly once, with the output tensors or with the error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from efserve.errors import EfserveError

Buffer = bytes | bytearray | memoryview
Body = bytes | memoryview  # of a request as it was received, or a part of one


class Borrowed(Protocol):
    """Wire bytes in somebody else's memory, to be copied to where they are used; InvalidRequest if they are gone."""

    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...
    def copy_to(self, target: memoryview) -> None: ...


Wire = Buffer | Borrowed  # of one tensor


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of one request: wire bytes of shape `shape` (batch included where the model batches)."""

    shape: tuple[int, ...]
    data: bytes


Outputs = tuple[OutputTensor, ...]  # in the order of the model's outputs
Outcome = Outputs | EfserveError


@dataclass(slots=True, eq=False)
class InferRequest:
    """One request for one model, valid for it: shapes, datatypes and sizes have been checked.

    `tensors` and `shapes` follow the order of the model's inputs. `shape_key` is equal for two requests exactly when
    their rows may share a batch. Times are `time.monotonic_ns()`.
    """

    tensors: tuple[Wire, ...]  # wire bytes, little-endian, row-major
    shapes: tuple[tuple[int, ...], ...]  # batch included where the model batches
    rows: int  # 1 where the model does not batch
    shape_key: object
    done: Callable[[Outcome], None]
    timeout_us: int = 0  # the request's own; 0: the model's queue policy decides
    arrival_ns: int = 0
    deadline_ns: int | None = None
    place: int = 0  # in the queue where it waits, which sets it
    retried: bool = False
    cancelled: bool = False
    priority: int = 0  # 1 is the highest; 0: the model's default
    protocol: str = "HTTP"  # that it came over: HTTP or GRPC
    begun_ns: int = 0  # when its first bytes arrived; 0: with its last
    withdraw: Callable[["InferRequest"], None] | None = None  # set by whoever holds it: it is cancelled, let it go

    def cancel(self) -> None:
        """The client has gone: nobody waits for the answer, and what waits for its turn need not run."""
        self.cancelled = True
        if self.withdraw is not None:
            self.withdraw(self)


class BatchTiming(NamedTuple):
    """When one batch went through its worker, as `time.monotonic_ns()` stamps, which all processes share."""

    start_ns: int
    input_ns: int  # the inputs are arrays
    infer_ns: int  # the engine has answered
    output_ns: int  # the outputs are in shared memory
    device_ns: int = 0  # no stamp: how long the GPU worked on it by its own clock; 0: not known
