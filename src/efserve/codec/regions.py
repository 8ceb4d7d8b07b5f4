"""Tensors that a client keeps in shared memory: what decoding and answering need of whoever maps it."""

from typing import NamedTuple, Protocol

from efserve.inference import Borrowed, Buffer


class RegionPlace(NamedTuple):
    """A part of a registered region."""

    region: str
    offset: int
    size_bytes: int


class Window(Protocol):
    """A part of a region that stays writable, even if the region is unregistered meanwhile."""

    @property
    def size_bytes(self) -> int: ...
    def write(self, data: Buffer) -> None:
        """Put the data to the front, where it fits."""


class ClientMemory(Protocol):
    """The regions that clients have registered; raises NotFound and InvalidRequest for what is not in one."""

    def read(self, place: RegionPlace) -> Borrowed:
        """The bytes there, to be copied when they are used; even if the region is unregistered meanwhile."""

    def window(self, place: RegionPlace) -> Window: ...
