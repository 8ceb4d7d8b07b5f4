"""Page-locking: each mapping once, whole, and no more after a failure. The driver's calls on a stand-in library."""

import ctypes
import mmap
from collections.abc import Callable

import numpy as np
import pytest

from efserve.engines.cuda_driver import CudaDriver
from efserve.engines.cuda_pins import Pins, mapping_of
from efserve.libcuda import Libcuda
from efserve.tensors import Array
from fake_cuda import StandInDriver


class Locker:
    """Remembers what is locked."""

    def __init__(self, refuses: bool = False) -> None:
        self.locked: dict[int, int] = {}
        self.refuses = refuses
        self.asked = 0

    def lock(self, address: int, size_bytes: int) -> None:
        self.asked += 1
        if self.refuses:
            raise OSError("cuMemHostRegister_v2: out of memory")
        self.locked[address] = size_bytes

    def unlock(self, address: int) -> None:
        del self.locked[address]


def test_a_mapping_is_locked_once_and_whole() -> None:
    first, second = mmap.mmap(-1, 8192), mmap.mmap(-1, 4096)
    arrays: list[Array] = [
        np.frombuffer(first, np.float32, 10, 64).reshape(2, 5),
        np.frombuffer(first, np.uint8, 3, 4096),
        np.frombuffer(second, np.int64, 4, 8)[::1],
    ]
    locker = Locker()
    pins = Pins(locker)
    assert pins.ensure(arrays)
    assert pins.ensure(arrays)
    assert sorted(locker.locked.values()) == [4096, 8192]
    assert locker.asked == 2
    assert arrays[1].ctypes.data - 4096 in locker.locked
    assert pins.locked_bytes == 12288
    pins.release()
    assert not locker.locked
    assert repr(pins) == "<Pins 0 mappings, 0 bytes>"


def test_memory_of_its_own_cannot_be_locked() -> None:
    assert mapping_of(np.zeros(3)) is None
    assert mapping_of(np.frombuffer(b"of a moment", np.uint8)[2:]) is None
    locker = Locker()
    assert not Pins(locker).ensure([np.zeros(3)])
    assert locker.asked == 0


def test_a_refusal_is_kept_and_not_repeated() -> None:
    locker = Locker(refuses=True)
    pins = Pins(locker)
    for _ in range(3):
        assert not pins.ensure([np.frombuffer(mmap.mmap(-1, 4096), np.uint8)])
    assert locker.asked == 1
    assert pins.problem == "cuMemHostRegister_v2: out of memory"


def test_the_primary_context_is_made_current_where_there_is_none() -> None:
    library = StandInDriver()
    CudaDriver(Libcuda(library))
    assert library.calls == ["cuInit", "cuCtxGetCurrent", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"]
    library = StandInDriver(has_context=True)
    CudaDriver(Libcuda(library)).lock(4096, 8192)
    assert library.calls == ["cuInit", "cuCtxGetCurrent", "cuMemHostRegister_v2"]


def test_a_graph_is_captured_and_launched() -> None:
    library = StandInDriver()
    driver = CudaDriver(Libcuda(library))
    library.calls.clear()
    launch = driver.capture(7, lambda: library.calls.append("work"))
    assert library.calls == [
        "cuStreamBeginCapture_v2",
        "work",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphDestroy",
    ]
    launch()
    launch()
    assert library.calls[-2:] == ["cuGraphLaunch", "cuGraphLaunch"]


def test_a_capture_that_breaks_is_ended() -> None:
    library = StandInDriver(fails="cuStreamEndCapture")
    driver = CudaDriver(Libcuda(library))
    with pytest.raises(OSError, match="cuStreamEndCapture: operation not permitted when stream is capturing"):
        driver.capture(7, lambda: None)

    def breaks() -> None:
        raise ValueError("no kernel")

    library = StandInDriver()
    with pytest.raises(ValueError, match="no kernel"):
        CudaDriver(Libcuda(library)).capture(7, breaks)
    assert library.calls[-1] == "cuStreamEndCapture"


def test_the_arguments_are_pointers_and_sizes() -> None:
    seen: list[tuple[object, ...]] = []

    class Library(StandInDriver):
        def __getattr__(self, name: str) -> Callable[..., int]:
            return lambda *arguments: seen.append((name, *arguments)) or 0  # type: ignore[func-returns-value]

    CudaDriver(Libcuda(Library())).lock(4096, 1 << 33)
    name, address, size, flags = seen[-1]
    assert name == "cuMemHostRegister_v2"
    assert isinstance(address, ctypes.c_void_p)
    assert isinstance(size, ctypes.c_size_t)
    assert (address.value, size.value) == (4096, 1 << 33)
    assert isinstance(flags, ctypes.c_uint)
    assert flags.value == 1
