"""Shared memory of clients: what may be registered, what is in it, and what happens when it goes away."""

import itertools
import os
import resource
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from efserve.codec.regions import RegionPlace
from efserve.codec.v2_infer import Decoded, decode
from efserve.codec.v2_response import render
from efserve.errors import EfserveError, InferenceFailed, InvalidRequest, NotFound, ServerError, Unsupported
from efserve.inference import Buffer, OutputTensor
from efserve.transport.regions import CUDA, ClientRegions
from fakes import FakeModel, identity_config

_numbers = itertools.count()


class Segment(NamedTuple):
    """A POSIX segment of 4096 bytes, as a client makes it."""

    name: str
    buf: memoryview


@pytest.fixture
def segment() -> Iterator[Segment]:
    memory = SharedMemory(f"efserve-test-{os.getpid()}-{next(_numbers)}", create=True, size=4096)
    assert memory.buf is not None
    yield Segment(memory.name, memory.buf)
    memory.close()
    memory.unlink()


@pytest.fixture
def regions(segment: Segment) -> ClientRegions:
    """With region `r`: all of the segment."""
    found = ClientRegions(allowed=True)
    found.register("r", f"/{segment.name}", 0, 4096)
    return found


def test_nothing_may_be_registered_unless_it_is_allowed(segment: Segment) -> None:
    closed = ClientRegions()
    with pytest.raises(Unsupported, match="--allow-client-shm"):
        closed.register("r", segment.name, 0, 1)
    with pytest.raises(Unsupported, match="--allow-client-shm"):
        closed.unregister()
    assert closed.regions() == []


def test_a_region_is_a_part_of_its_segment(segment: Segment) -> None:
    segment.buf[:4096] = bytes(range(256)) * 16
    regions = ClientRegions(allowed=True)
    regions.register("part", segment.name, 100, 50)
    assert bytes(regions.read(RegionPlace("part", 0, 3))) == bytes((100, 101, 102))
    assert bytes(regions.read(RegionPlace("part", 49, 1))) == bytes((149,))
    for offset, size in ((0, 51), (50, 1), (50, 0), (49, 2), (2**64, 1), (0, 2**64)):
        with pytest.raises(InvalidRequest, match=r"for (shared memory )?region:? 'part'"):
            regions.read(RegionPlace("part", offset, size))
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'x'"):
        regions.read(RegionPlace("x", 0, 1))


@pytest.mark.parametrize(
    ("key", "offset", "size", "error", "says"),
    [
        ("/no-such-segment", 0, 1, ServerError, "Unable to open shared memory region: '/no-such-segment'"),
        ("/../../etc/passwd", 0, 1, ServerError, "Unable to open"),
        ("..", 0, 1, ServerError, "Unable to open"),
        ("", 0, 1, InvalidRequest, "cannot register shared memory region 'r' - invalid shm key ''"),
        ("//", 0, 1, InvalidRequest, "cannot register shared memory region 'r' - invalid shm key '//'"),
        ("/triton_python_backend_shm_region_x", 0, 1, InvalidRequest, "the key contains the reserved prefix"),
        ("a\0b", 0, 1, ServerError, "Unable to open"),
        (None, 0, 4097, InvalidRequest, "invalid args"),
        (None, 4096, 1, InvalidRequest, "invalid args"),
        (None, 2**70, 1, InvalidRequest, "invalid args"),
        (None, 0, 0, InvalidRequest, "invalid args"),
    ],
)
def test_what_cannot_be_registered(
    segment: Segment, key: str | None, offset: int, size: int, error: type[EfserveError], says: str
) -> None:
    regions = ClientRegions(allowed=True)
    with pytest.raises(error, match=says):
        regions.register("r", segment.name if key is None else key, offset, size)
    assert regions.regions() == []


def test_a_name_is_taken_once(regions: ClientRegions, segment: Segment) -> None:
    with pytest.raises(InvalidRequest, match="shared memory region 'r' already in manager"):
        regions.register("r", segment.name, 0, 1)
    regions.unregister("r")
    regions.unregister("r")
    regions.register("r", segment.name, 0, 1)
    regions.unregister()
    assert regions.regions() == []


def test_a_region_in_use_stays_until_the_last_use_ends(regions: ClientRegions, segment: Segment) -> None:
    first = regions.read(RegionPlace("r", 0, 4))
    regions.unregister("r")
    second = regions.window(RegionPlace("r", 0, 4))  # whoever comes now may still use it
    del first
    assert [region.name for region in regions.regions()] == ["r"]
    with pytest.raises(InvalidRequest, match="shared memory region 'r' already in manager"):
        regions.register("r", segment.name, 0, 1)
    del second
    assert regions.regions() == []
    with pytest.raises(NotFound, match="Unable to find system shared memory region: 'r'"):
        regions.regions("r")


def test_a_region_of_the_other_kind_is_told(regions: ClientRegions) -> None:
    with pytest.raises(NotFound, match="'r' is registered as system shared memory, not CUDA shared memory"):
        regions.regions("r", CUDA)


def test_a_segment_that_was_cut_short_is_noticed(regions: ClientRegions, segment: Segment) -> None:
    window = regions.window(RegionPlace("r", 0, 4096))
    os.truncate(f"/dev/shm/{segment.name}", 100)
    with pytest.raises(InvalidRequest, match="was cut short"):
        regions.read(RegionPlace("r", 0, 4096))
    with pytest.raises(InvalidRequest, match="was cut short"):
        window.write(bytes(10))


def test_a_segment_that_has_no_room_left_is_told(regions: ClientRegions) -> None:
    """As on a full /dev/shm; here this process may write no file."""
    window = regions.window(RegionPlace("r", 0, 4))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        with pytest.raises(InferenceFailed, match="region 'r' cannot be written: File too large"):
            window.write(b"1234")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_segment_that_is_cut_short_while_it_waits(regions: ClientRegions, segment: Segment) -> None:
    data = regions.read(RegionPlace("r", 0, 4096))
    os.truncate(f"/dev/shm/{segment.name}", 100)
    with pytest.raises(InvalidRequest, match="was cut short"):
        bytes(data)
    with pytest.raises(InvalidRequest, match="was cut short"):
        data.copy_to(memoryview(bytearray(4096)))


class FakeDriver:
    """The memory of one GPU, which another process shares as it is."""

    def __init__(self, size_bytes: int) -> None:
        self.memory = bytearray(size_bytes)
        self.opened: list[tuple[bytes, int]] = []
        self.closed: list[int] = []

    def open(self, handle: bytes, device_id: int) -> int:
        if device_id:
            raise OSError("cuDeviceGet failed with 101: invalid device ordinal")
        self.opened.append((handle, device_id))
        return 1000 * len(self.opened)

    def read(self, address: int, device_id: int, target: memoryview) -> None:
        start = address % 1000
        if start + len(target) > len(self.memory):
            raise OSError("cuMemcpyDtoH_v2 failed with 700: an illegal memory access was encountered")
        target[:] = self.memory[start : start + len(target)]

    def write(self, address: int, device_id: int, data: Buffer) -> None:
        self.memory[address % 1000 : address % 1000 + len(data)] = data

    def close(self, address: int, device_id: int) -> None:
        self.closed.append(address)


def test_memory_of_a_gpu() -> None:
    driver = FakeDriver(100)
    driver.memory[10:14] = b"abcd"
    regions = ClientRegions(allowed=True, driver=driver)
    regions.register_cuda("g", bytes(64), 0, 100)
    assert [(r.name, r.device_id, r.size_bytes) for r in regions.regions("", CUDA)] == [("g", 0, 100)]
    assert regions.regions() == []
    data, window = regions.read(RegionPlace("g", 10, 4)), regions.window(RegionPlace("g", 20, 4))
    regions.unregister("g")  # the system's
    regions.unregister("g", CUDA)
    assert driver.closed == []  # while it is used
    assert bytes(data) == b"abcd"
    window.write(b"wxyz")
    assert driver.memory[20:24] == b"wxyz"
    del data, window
    assert driver.closed == [1000]
    with pytest.raises(NotFound, match="Unable to find cuda shared memory region: 'g'"):
        regions.regions("g", CUDA)


@pytest.mark.parametrize(
    ("handle", "device_id", "size_bytes", "says"),
    [
        (bytes(63), 0, 1, "the handle has 63 bytes, expected 64"),
        (bytes(64), 0, 0, "byte_size is 0"),
        (bytes(64), 1, 1, "invalid device ordinal"),
    ],
)
def test_memory_of_a_gpu_that_cannot_be_opened(handle: bytes, device_id: int, size_bytes: int, says: str) -> None:
    driver = FakeDriver(1)
    regions = ClientRegions(allowed=True, driver=driver)
    with pytest.raises(InvalidRequest, match=f"failed to register CUDA shared memory region 'g': .*{says}"):
        regions.register_cuda("g", handle, device_id, size_bytes)
    assert (regions.regions("", CUDA), driver.opened, driver.closed) == ([], [], [])


def test_what_is_held_outlives_the_registration(regions: ClientRegions, segment: Segment) -> None:
    view, window = regions.read(RegionPlace("r", 0, 4)), regions.window(RegionPlace("r", 8, 4))
    regions.unregister("r")
    segment.buf[:4] = b"abcd"
    window.write(b"wxyz")
    assert bytes(view) == b"abcd"
    assert bytes(segment.buf[8:12]) == b"wxyz"
    with pytest.raises(InferenceFailed, match="5 bytes do not fit 4"):
        window.write(bytes(5))


def in_region(offset: int, size: int) -> dict[str, Any]:
    return {"shared_memory_region": "r", "shared_memory_offset": offset, "shared_memory_byte_size": size}


def request(model: FakeModel, output: dict[str, Any], offset: int = 0, size: int = 64) -> Decoded:
    """A request with its input in region `r`."""
    head = {
        "inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "parameters": in_region(offset, size)}],
        "outputs": [{"name": "output", "parameters": output}],
    }
    text = msgspec.json.encode(head)
    return decode(model, text, len(text))


def test_tensors_in_a_region(regions: ClientRegions, segment: Segment) -> None:
    values = np.arange(16, dtype=np.float32)
    segment.buf[64:128] = values.tobytes()
    model = FakeModel(identity_config(), memory=regions)
    for _ in range(2):  # new, and remembered
        template, (tensor,), _ = request(model, in_region(1024, 100), offset=64)
        assert bytes(tensor) == values.tobytes()
        text, tail = render(template, (OutputTensor((1, 16), bytes(tensor)),))
        assert msgspec.json.decode(text)["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [1, 16]}]
        assert tail == []
        assert bytes(segment.buf[1024:1088]) == values.tobytes()
    assert len(model.templates) == 1
    regions.unregister("r")
    del template, tensor
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'r'"):
        request(model, in_region(1024, 100), offset=64)


def test_what_does_not_fit_a_region(regions: ClientRegions) -> None:
    model = FakeModel(identity_config(), memory=regions)
    with pytest.raises(InvalidRequest, match="Expected 64, got 63"):
        request(model, {}, size=63)
    with pytest.raises(InvalidRequest, match=r"Invalid offset \+ byte size"):
        request(model, {}, offset=4095)
    with pytest.raises(InvalidRequest, match=r"Invalid offset \+ byte size"):
        request(model, in_region(4000, 97))
    with pytest.raises(InvalidRequest, match="Output can't set both 'shared_memory_region' and 'classification'"):
        request(model, {**in_region(0, 64), "classification": 1})
    template, _, _ = request(model, in_region(0, 10))
    with pytest.raises(InferenceFailed, match=r"for output 'output' \(10 bytes\) should be at least 64 bytes"):
        render(template, (OutputTensor((1, 16), bytes(64)),))


def test_strings_in_a_region_are_checked_and_copied(regions: ClientRegions, segment: Segment) -> None:
    model = FakeModel(identity_config(datatype="BYTES", dims=(2,)), memory=regions)
    segment.buf[:11] = b"\1\0\0\0a\2\0\0\0bc"
    head = {"inputs": [{"name": "input", "shape": [1, 2], "datatype": "BYTES", "parameters": in_region(0, 11)}]}
    text = msgspec.json.encode(head)
    _, (tensor,), _ = decode(model, text, len(text))
    segment.buf[0] = 200
    assert bytes(tensor) == b"\1\0\0\0a\2\0\0\0bc"
    with pytest.raises(InvalidRequest, match="inference input 'input' for model 'identity'"):
        decode(model, text, len(text))
