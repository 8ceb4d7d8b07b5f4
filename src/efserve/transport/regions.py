"""Memory that clients bring: POSIX segments by name, and memory of a GPU by its handle; opened when it is registered.

Whoever reads or writes a region holds its memory, so it may be unregistered at any time. Segments are read and written
as files, not mapped: one that a client cuts short meanwhile is then an error, where a mapping would end this process.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

from efserve.codec.regions import RegionPlace
from efserve.errors import InferenceFailed, InvalidRequest, NotFound, ServerError, Unsupported
from efserve.inference import Buffer
from efserve.transport.cuda_memory import CudaMemory, Driver, cuda_driver

SEGMENTS = "/dev/shm"  # where Linux shows the names that shm_open knows
DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
SYSTEM, CUDA = "system", "cuda"
_SPELLED = {SYSTEM: "system", CUDA: "CUDA"}
_RESERVED_PREFIX = "triton_python_backend_shm_region_"  # of Triton's own segments
_MAX_SIZE = 2**64 - 1


class Memory(Protocol):
    """Memory of a client. Its end is this object's: whoever uses it keeps it."""

    @property
    def size_bytes(self) -> int:
        """How large it is now."""

    def read(self, offset: int, target: memoryview) -> bool:
        """Fill the target from there; False where there is not so much."""

    def write(self, offset: int, data: Buffer) -> None:
        """Put the data there; OSError where that cannot be."""


class Segment:
    """A POSIX segment, by its open descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __repr__(self) -> str:
        return f"<Segment {self._fd}>"

    def __del__(self) -> None:
        os.close(self._fd)

    @property
    def size_bytes(self) -> int:
        """See `Memory`."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, target: memoryview) -> bool:
        """See `Memory`."""
        while len(target):
            count = os.preadv(self._fd, [target], offset)
            if not count:
                return False
            target, offset = target[count:], offset + count
        return True

    def write(self, offset: int, data: Buffer) -> None:
        """See `Memory`."""
        rest = memoryview(data)
        while len(rest):
            count = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[count:], offset + count


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Region:
    """A registered part of a client's memory: `size_bytes` from `offset` on."""

    kind: str  # SYSTEM or CUDA
    name: str
    key: str  # of a segment
    offset: int
    size_bytes: int
    memory: Memory = field(repr=False)
    device_id: int = 0  # of CUDA memory

    def start_of(self, place: RegionPlace) -> int:
        """Where a place begins in `memory`; InvalidRequest when it is not all in the region, or no more there."""
        if place.offset >= self.size_bytes:
            raise InvalidRequest(f"Invalid offset for shared memory region: '{self.name}'")
        if place.offset + place.size_bytes > _MAX_SIZE:
            raise InvalidRequest(
                f"Integer overflow detected: byte_size ({place.size_bytes}) + offset ({place.offset}) exceeds maximum "
                f"value ({_MAX_SIZE}) for region '{self.name}'"
            )
        if place.offset + place.size_bytes > self.size_bytes:
            raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{self.name}'")
        start = self.offset + place.offset
        if start + place.size_bytes > self.memory.size_bytes:
            raise self.cut_short()
        return start

    def cut_short(self) -> InvalidRequest:
        """What to say when less is there than was registered."""
        return InvalidRequest(f"shared memory region '{self.name}' was cut short after it was registered")


@dataclass(frozen=True, slots=True)
class RegionBytes:
    """A part of a region to read from; see `Borrowed`."""

    region: Region
    start: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes

    def __bytes__(self) -> bytes:
        copied = bytearray(self.size_bytes)
        self.copy_to(memoryview(copied))
        return bytes(copied)

    def copy_to(self, target: memoryview) -> None:
        """Fill the target, which is as large."""
        if not self.region.memory.read(self.start, target):
            raise self.region.cut_short()


@dataclass(frozen=True, slots=True)
class RegionWindow:
    """A part of a region to write to."""

    region: Region
    place: RegionPlace

    @property
    def size_bytes(self) -> int:
        """Most that it holds."""
        return self.place.size_bytes

    def write(self, data: Buffer) -> None:
        """Put the data to the front; InferenceFailed where it does not fit, or the memory cannot be had."""
        if len(data) > self.size_bytes:
            raise InferenceFailed(f"{len(data)} bytes do not fit {self.size_bytes} bytes of '{self.region.name}'")
        start = self.region.start_of(self.place)
        try:
            self.region.memory.write(start, data)
        except OSError as exc:  # a segment has its pages only when they are written, and there may be none left
            reason = exc.strerror or exc
            raise InferenceFailed(f"shared memory region '{self.region.name}' cannot be written: {reason}") from exc


class ClientRegions:
    """The regions of all clients, by name.

    One that is unregistered while requests use it stays, for all to use, until the last of them is answered.
    """

    def __init__(self, *, allowed: bool = False, driver: Driver | None = None) -> None:
        """`driver`: of the GPUs; None: this machine's, where it has one."""
        self._allowed = allowed
        self._driver = driver
        self._regions: dict[str, Region] = {}
        self._leaving: Mapping[str, Region] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<ClientRegions {list(self._regions)}>"

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Take `size_bytes` from `offset` on of the segment that shm_open knows as `key`.

        Raises Unsupported where clients may not do so, ServerError for a segment that cannot be opened, and
        InvalidRequest for a name that is taken or a part that is not in the segment.
        """
        self._check_free(name)
        _check_key(name, key)
        fd = _open(key)
        facts = os.fstat(fd)
        memory = Segment(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise ServerError(f"Invalid shared memory region: '{key}'")
        if size_bytes < 1 or offset + size_bytes > facts.st_size:
            raise InvalidRequest(
                f"failed to register shared memory region '{name}': invalid args: {size_bytes} bytes from offset "
                f"{offset} on are not in '{key}', which has {facts.st_size}"
            )
        self._regions[name] = Region(SYSTEM, name, key, offset, size_bytes, memory)

    def register_cuda(self, name: str, handle: bytes, device_id: int, size_bytes: int) -> None:
        """Take memory of a GPU that another process shares by the handle of `cudaIpcGetMemHandle`.

        Raises Unsupported where clients may not do so, and InvalidRequest for a name that is taken, without a GPU, or
        where the driver does not open the handle.
        """
        self._check_free(name)
        driver = self._driver or cuda_driver()
        if driver is None:
            raise InvalidRequest(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")
        try:
            memory = CudaMemory(driver, handle, device_id, size_bytes)
        except OSError as exc:
            raise InvalidRequest(f"failed to register CUDA shared memory region '{name}': {exc}") from exc
        self._regions[name] = Region(CUDA, name, "", 0, size_bytes, memory, device_id)

    def unregister(self, name: str = "", kind: str = SYSTEM) -> None:
        """Forget a region, or all of a kind; requests that use it are not disturbed. An unknown name is no error."""
        self.check_allowed()
        going = {region.name: region for region in self._regions.values() if region.kind == kind}
        if name:
            going = {name: going[name]} if name in going else {}
        for gone in going:
            del self._regions[gone]
        self._leaving = WeakValueDictionary({**self._leaving, **going})

    def regions(self, name: str = "", kind: str = SYSTEM) -> list[Region]:
        """The region of that name, or all of a kind; NotFound."""
        every = {**self._leaving, **self._regions}
        if not name:
            return [region for region in every.values() if region.kind == kind]
        if name not in every:
            raise NotFound(f"Unable to find {kind} shared memory region: '{name}'")
        if every[name].kind != kind:
            raise NotFound(
                f"The region named '{name}' is registered as {_SPELLED[every[name].kind]} shared memory, "
                f"not {_SPELLED[kind]} shared memory"
            )
        return [every[name]]

    def read(self, place: RegionPlace) -> RegionBytes:
        """The bytes at a place, to be copied when they are used."""
        region = self._find(place)
        return RegionBytes(region, region.start_of(place), place.size_bytes)

    def window(self, place: RegionPlace) -> RegionWindow:
        """The place, to write to it later."""
        region = self._find(place)
        region.start_of(place)
        return RegionWindow(region, place)

    def _find(self, place: RegionPlace) -> Region:
        region = self._regions.get(place.region) or self._leaving.get(place.region)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{place.region}'")
        return region

    def _check_free(self, name: str) -> None:
        self.check_allowed()
        if name in self._regions or name in self._leaving:
            raise InvalidRequest(f"shared memory region '{name}' already in manager")

    def check_allowed(self) -> None:
        """Raise Unsupported unless clients may register memory here."""
        if not self._allowed:
            raise Unsupported(DISABLED)


def _check_key(name: str, key: str) -> None:
    bare = key.lstrip("/")
    if not bare:
        raise InvalidRequest(f"cannot register shared memory region '{name}' - invalid shm key '{key}'")
    if bare.startswith(_RESERVED_PREFIX):
        raise InvalidRequest(
            f"cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved prefix "
            f"'{_RESERVED_PREFIX}'"
        )


def _open(key: str) -> int:
    name = key.lstrip("/")
    if not name or "/" in name or "\0" in name:
        raise ServerError(f"Unable to open shared memory region: '{key}'")
    try:
        return os.open(f"{SEGMENTS}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise ServerError(f"Unable to open shared memory region: '{key}'") from exc
