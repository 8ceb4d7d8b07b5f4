"""onnxruntime on a GPU with its tensors there: copies in, the session, copies out, all on one stream that is ours.

The session runs on that stream too (`user_compute_stream`), so what it computes can be timed apart from the copies.
Never run on hardware so far; least known is what onnxruntime makes of a stream that belongs to a green context.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from efserve.engines.device_lost import check_device
from efserve.tensors import Array

Result = TypeVar("Result")
Tensor = tuple[str, int, Array]  # name, its number in onnx.TensorProto.DataType, where it is in the host's memory


class Device(Protocol):
    """One GPU with one stream; all but `wait` and `synchronize` only enqueue."""

    kind: str  # as onnxruntime names it
    stream: int  # handle

    def allocate(self, size_bytes: int) -> int: ...

    def copy_in(self, address: int, source: Array) -> None: ...

    def copy_out(self, target: Array, address: int) -> None: ...

    def mark(self, number: int) -> None: ...

    def wait(self) -> int: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class DeviceRuns:
    """A session with places for its tensors on the device; one that was outgrown stays for who is bound to it."""

    session: Any
    device: Device
    device_ns: int = 0  # of the last run, copies not counted
    _places: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> address, bytes: the largest so far

    def bind(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Callable[[], None]:
        """A call that computes from the host's arrays into the host's arrays, which must live as long as it."""
        device, binding = self.device, self.session.io_binding()
        sources, targets = ([self._place(tensor) for tensor in tensors] for tensors in (inputs, outputs))
        for (name, element, array), address in zip(inputs, sources, strict=True):
            binding.bind_input(name, device.kind, 0, element, array.shape, address)
        for (name, element, array), address in zip(outputs, targets, strict=True):
            binding.bind_output(name, device.kind, 0, element, array.shape, address)

        def run() -> None:
            for (_, _, array), address in zip(inputs, sources, strict=True):
                device.copy_in(address, array)
            device.mark(0)
            self.session.run_with_iobinding(binding)
            device.mark(1)
            for (_, _, array), address in zip(outputs, targets, strict=True):
                device.copy_out(array, address)
            self.device_ns = device.wait()

        return lambda: self.checked(run)

    def checked(self, run: Callable[[], Result]) -> Result:
        """A run; DeviceLost where it takes the GPU with it."""
        self.device_ns = 0
        try:
            return run()
        except Exception as error:
            check_device(error, self.device.synchronize)
            raise

    def close(self) -> None:
        """Let go of the session, then of the device."""
        self.session = None
        self.device.close()

    def _place(self, tensor: Tensor) -> int:
        name, _, array = tensor
        address, size_bytes = self._places.get(name, (0, 0))
        if array.nbytes > size_bytes:
            address = self.device.allocate(array.nbytes)
            self._places[name] = (address, array.nbytes)
        return address
