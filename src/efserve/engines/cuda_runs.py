"""A batch on a GPU: copies to the device, a run of a compiled program, copies back, all on one stream; graphs.

Every tensor has one place in the device's memory, large enough for its largest shape, so whatever runs once can be
captured as a graph and repeated. A graph needs an instance of the program of its own, whose shapes nobody changes any
more. Knows neither a CUDA binding nor a runtime: both come as protocols.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from efserve.engines.base import Remark
from efserve.engines.cuda_pins import Pins
from efserve.engines.device_lost import check_device
from efserve.engines.shape_ranges import ShapeRange
from efserve.errors import InferenceFailed, LoadFailed
from efserve.tensors import NUMPY_DTYPES, Array, Shape, TensorSpec, byte_size

ALIGNMENT_BYTES = 256  # what TensorRT asks of a tensor's address
_REMEMBERED = 1024  # combinations of shapes; beyond that, they vary so much that remembering does not pay
_MAX_GRAPHS = 64  # each takes memory of the device; sizes beyond these run without

Launch = Callable[[], None]


class Device(Protocol):
    """One GPU with one stream; all but `wait` only enqueue."""

    stream: int  # handle

    def allocate(self, size_bytes: int) -> int:
        """Device memory; its address."""
        ...

    def copy_in(self, address: int, source: Array) -> None:
        """From the host to the device; truly asynchronous only from page-locked memory."""
        ...

    def copy_out(self, target: Array, address: int) -> None:
        """From the device to the host."""
        ...

    def locked(self, shape: Shape, datatype: str) -> Array:
        """A page-locked array."""
        ...

    def mark(self, number: int) -> None:
        """Note the device's time when the stream comes here: 0 before, 1 behind what is to be measured."""
        ...

    def wait(self) -> int:
        """Wait for all of it; nanoseconds between the marks."""
        ...

    def synchronize(self) -> None:
        """Wait for everything on the device; raises where it is lost to this process."""
        ...

    def capture(self, work: Launch) -> Launch:
        """What `work` enqueues, as one graph; OSError where it cannot be one."""
        ...

    def close(self) -> None:
        """Give back memory and stream."""
        ...


class Program(Protocol):
    """What runs: a TensorRT plan."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: tuple[ShapeRange, ...]
    scratch_bytes: int  # of the device's memory, while it runs

    def another(self) -> "Program":
        """Another instance, with shapes and addresses of its own."""
        ...

    def set_scratch(self, address: int) -> None: ...

    def set_shape(self, name: str, shape: Shape) -> None: ...

    def shape(self, name: str) -> Shape: ...

    def set_address(self, name: str, address: int) -> None: ...

    def enqueue(self, stream: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in the one allocation."""

    offset: int
    size_bytes: int


def places(largest: Mapping[str, tuple[str, Shape]]) -> tuple[dict[str, Place], int]:
    """A place for each tensor, (datatype, largest shape) by name, and the bytes of them all."""
    found, at = {}, 0
    for name, (datatype, shape) in largest.items():
        size_bytes = byte_size(datatype, shape)
        found[name] = Place(at, size_bytes)
        at = -(-(at + max(1, size_bytes)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return found, at


@dataclass(slots=True)
class _Size:
    """What is known of one combination of input shapes."""

    outputs: tuple[Shape, ...]
    runs: int = 0
    launch: Launch | None = None  # its graph


@dataclass(slots=True)
class CudaRuns:
    """Runs a program on a device; `inputs` and `outputs` are names in the caller's order."""

    device: Device
    program: Program
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    pins: Pins | None = None
    graphs: bool = True
    device_ns: int = 0  # of the last run
    _addresses: dict[str, int] = field(default_factory=dict)
    _ranges: dict[str, ShapeRange] = field(default_factory=dict)
    _datatypes: dict[str, str] = field(default_factory=dict)
    _bytes: dict[str, int] = field(default_factory=dict)  # of the largest shape
    _staging: dict[str, Array] = field(default_factory=dict)  # page-locked, of outputs that are not bound
    _sizes: dict[tuple[Shape, ...], _Size] = field(default_factory=dict)
    _current: tuple[Shape, ...] = ()  # shapes that the program is set to
    _scratch: int = 0  # address, shared by all instances: they run one after the other
    _graphed: list[Program] = field(default_factory=list)  # instances that graphs were captured of
    _problem: str = ""  # why there are no graphs

    def prepare(self) -> None:
        """Allocate for the largest shapes; LoadFailed where an output's size depends on values."""
        program = self.program
        self._ranges = {each.name: each for each in program.ranges}
        self._datatypes = {spec.name: spec.datatype for spec in (*program.inputs, *program.outputs)}
        largest = {spec.name: self._ranges[spec.name].most for spec in program.inputs}
        for name, shape in largest.items():
            program.set_shape(name, shape)
        for spec in program.outputs:
            largest[spec.name] = program.shape(spec.name)
            if min(largest[spec.name], default=0) < 0:
                raise LoadFailed(
                    f"the size of output '{spec.name}' depends on the values of the inputs (shape "
                    f"{list(largest[spec.name])}), which this engine does not support; serve it with --engine onnx"
                )
        found, total_bytes = places({name: (self._datatypes[name], shape) for name, shape in largest.items()})
        base = self.device.allocate(total_bytes)
        self._bytes = {name: place.size_bytes for name, place in found.items()}
        self._addresses = {name: base + place.offset for name, place in found.items()}
        self._scratch = self.device.allocate(program.scratch_bytes) if program.scratch_bytes else 0
        self._equip(program)

    def close(self) -> None:
        """Let go of the instances of graphs; the program itself is its owner's."""
        self._sizes.clear()
        for program in self._graphed:
            program.close()
        self._graphed.clear()

    def _equip(self, program: Program) -> None:
        for name, address in self._addresses.items():
            program.set_address(name, address)
        if self._scratch:
            program.set_scratch(self._scratch)

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs as new arrays."""
        size = self._size(inputs)
        if self.pins is not None:
            self.pins.ensure(inputs)
        staged = [self._staged(name, shape) for name, shape in zip(self.outputs, size.outputs, strict=True)]
        self._run(size, inputs, staged)
        return [array.copy() for array in staged]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Launch | None:
        """A call that computes from these arrays into those; None where their shapes are not the program's."""
        size = self._size(inputs)
        if [array.shape for array in outputs] != [*size.outputs]:
            return None
        if self.pins is not None:
            self.pins.ensure((*inputs, *outputs))
        return lambda: self._run(size, inputs, outputs)

    def remarks(self) -> list[Remark]:
        """What is slower than it could be, and why; how many sizes run as graphs."""
        found = []
        if self._graphed:
            found.append(Remark(f"{len(self._graphed)} combinations of input shapes run as CUDA graphs"))
        if self._problem:
            found.append(Remark(f"runs without CUDA graphs: {self._problem}", is_warning=True))
        if self.pins is not None and self.pins.problem:
            found.append(Remark(f"copies to the GPU are slower than they could be: {self.pins.problem}", True))
        return found

    def _staged(self, name: str, shape: Shape) -> Array:
        """An array of this shape at the front of the output's page-locked memory, which is made once."""
        if name not in self._staging:
            self._staging[name] = self.device.locked((self._bytes[name],), "UINT8")
        dtype = NUMPY_DTYPES[self._datatypes[name]]
        return self._staging[name][: byte_size(self._datatypes[name], shape)].view(dtype).reshape(shape)

    def _size(self, inputs: Sequence[Array]) -> _Size:
        shapes = tuple([array.shape for array in inputs])
        return self._sizes.get(shapes) or self._learn(shapes)

    def _learn(self, shapes: tuple[Shape, ...]) -> _Size:
        for name, shape in zip(self.inputs, shapes, strict=True):
            if not self._ranges[name].holds(shape):
                held = self._ranges[name]
                raise InferenceFailed(
                    f"input '{name}' has shape {list(shape)}, the plan takes {list(held.least)} to {list(held.most)}"
                )
        self._set(shapes)
        if len(self._sizes) >= _REMEMBERED:
            for known in [shapes for shapes, size in self._sizes.items() if size.launch is None]:
                del self._sizes[known]
        size = self._sizes[shapes] = _Size(tuple([self.program.shape(name) for name in self.outputs]))
        return size

    def _set(self, shapes: tuple[Shape, ...]) -> None:
        if shapes != self._current:
            self._current = ()
            for name, shape in zip(self.inputs, shapes, strict=True):
                self.program.set_shape(name, shape)
            self._current = shapes

    def _run(self, size: _Size, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        try:
            self._enqueue_all(size, inputs, outputs)
            self.device_ns = self.device.wait()
        except Exception as error:
            check_device(error, self.device.synchronize)
            raise

    def _enqueue_all(self, size: _Size, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        device, addresses = self.device, self._addresses
        for name, array in zip(self.inputs, inputs, strict=True):
            device.copy_in(addresses[name], array)
        device.mark(0)
        if size.launch is not None:
            size.launch()
        else:
            self._start(size, tuple([array.shape for array in inputs]))
        device.mark(1)
        for name, array in zip(self.outputs, outputs, strict=True):
            device.copy_out(array, addresses[name])

    def _start(self, size: _Size, shapes: tuple[Shape, ...]) -> None:
        """A run without a graph; the second of its size leaves one for the next."""
        size.runs += 1
        try:
            if size.runs == 2 and self.graphs and len(self._graphed) < _MAX_GRAPHS:
                self._run_and_capture(size, shapes)
                return
            self._set(shapes)
            self.program.enqueue(self.device.stream)
        except OSError as error:
            raise InferenceFailed(str(error)) from error

    def _run_and_capture(self, size: _Size, shapes: tuple[Shape, ...]) -> None:
        """As NVIDIA asks: an instance for each graph, which has run once with its shapes before it is captured."""
        program = self.program.another()
        self._equip(program)
        for name, shape in zip(self.inputs, shapes, strict=True):
            program.set_shape(name, shape)
        program.enqueue(self.device.stream)
        try:
            size.launch = self.device.capture(lambda: program.enqueue(self.device.stream))
        except OSError as error:  # some programs wait for the device in between: they run as they are
            self.graphs, self._problem = False, str(error)
            program.close()
        else:
            self._graphed.append(program)


def check_datatypes(datatypes: Sequence[str]) -> None:
    """LoadFailed for strings, which have no place in a GPU's memory."""
    if any(NUMPY_DTYPES[datatype].kind == "O" for datatype in datatypes):
        raise LoadFailed("a tensor is BYTES, but a GPU has no strings")
