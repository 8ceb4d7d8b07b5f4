"""Messages as bytes, packets over the channel, and shared memory that grows under its readers."""

import gc
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from efserve.model_config import DynamicBatching, ModelConfig
from efserve.partition import Partition
from efserve.tensors import TensorSpec
from efserve.transport import messages
from efserve.transport.arena import FIRST_BYTES, Area
from efserve.transport.channel import Channel
from efserve.worker.spec import WorkerSpec
from leaks import mapped_areas, open_areas

SHAPES = st.lists(st.integers(0, 2**40), max_size=6).map(tuple)
SIZES = st.lists(st.tuples(st.integers(0, 2**40), SHAPES), max_size=8)


@given(SIZES, st.integers(0, 255))
def test_a_layout_survives_its_bytes(sizes: list[tuple[int, tuple[int, ...]]], slot: int) -> None:
    pieces = messages.place(sizes)
    message = messages.run(slot, pieces)
    assert message[:2] == bytes((messages.RUN, slot))
    assert messages.decode_layout(message, 2) == pieces


@given(SIZES)
def test_pieces_are_aligned_and_do_not_overlap(sizes: list[tuple[int, tuple[int, ...]]]) -> None:
    pieces = messages.place(sizes)
    assert [(piece.size_bytes, piece.shape) for piece in pieces] == sizes
    assert all(piece.offset % messages.ALIGNMENT_BYTES == 0 for piece in pieces)
    assert all(after.offset >= before.end for before, after in itertools.pairwise(pieces))
    assert messages.end_of(pieces) >= sum(size for size, _ in sizes)


def test_texts_are_cut_to_fit_a_packet() -> None:
    for message in (messages.error(1, "é" * 10**6), messages.failed("é" * 10**6)):
        assert len(message) <= messages.MAX_MESSAGE_BYTES
        assert messages.text_of(message).startswith("é" * 1000)
    assert messages.text_of(messages.error(3, "no")) == "no"
    assert messages.error(3, "no")[1] == 3


def test_a_spec_survives_its_json() -> None:
    config = ModelConfig(
        "m",
        max_batch_size=4,
        inputs=(TensorSpec("x", "FP32", (-1, 3)),),
        dynamic_batching=DynamicBatching((2, 4), 100),
        label_filenames={"y": "labels.txt"},
        parameters={"key": "value"},
    )
    spec = WorkerSpec(config, "1", Path("somewhere/1"), "onnx", Partition("cpu", 2, (0, 1)), 4)
    assert messages.from_json(messages.to_json(spec), WorkerSpec) == spec


def test_packets_are_whole_and_in_order() -> None:
    ours, their_socket = Channel.pair()
    theirs = Channel(their_socket)
    assert ours.receive() is None
    largest = os.urandom(messages.MAX_MESSAGE_BYTES)
    theirs.send(b"first")
    theirs.send(largest)
    assert [ours.receive(), ours.receive(), ours.receive()] == [b"first", largest, None]
    ours.close()
    theirs.close()


def test_what_was_sent_before_the_end_is_received() -> None:
    ours, their_socket = Channel.pair()
    theirs = Channel(their_socket)
    ours.send(b"never read")
    theirs.send(b"last words")
    theirs.close()
    assert ours.receive() == b"last words"
    assert ours.receive() == b""
    with pytest.raises(BrokenPipeError):
        ours.send(b"too late")
    ours.close()


def test_a_peer_that_reads_nothing_never_blocks_us() -> None:
    ours, their_socket = Channel.pair()

    def flood() -> None:
        while True:
            ours.send(b"x" * 1000)

    with pytest.raises(BlockingIOError):
        flood()
    ours.close()
    their_socket.close()


class Growth(RuleBasedStateMachine):
    """One writer, one reader that maps only when told of bytes beyond its mapping, and arrays that outlive mappings."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = Area.create()
        self.reader = Area(os.dup(self.writer.fileno()))
        self.expected: dict[int, int] = {}
        self.views: list[tuple[int, np.ndarray[tuple[int], np.dtype[np.uint8]]]] = []

    @rule(at=st.integers(0, 8 * FIRST_BYTES), value=st.integers(0, 255))
    def write(self, at: int, value: int) -> None:
        self.writer.reserve(at + 1)
        self.writer.map[at : at + 1] = bytes((value,))
        self.expected[at] = value

    @rule()
    def look(self) -> None:
        """The reader keeps an array over the mapping of the moment."""
        for at in self.expected:
            self.reader.reach(at + 1)
        end = max(self.expected, default=0) + 1
        self.views.append((end, np.frombuffer(self.reader.map, np.uint8, end)))

    @rule()
    def forget(self) -> None:
        self.views.clear()

    @invariant()
    def everyone_sees_what_was_written(self) -> None:
        for at, value in self.expected.items():
            self.reader.reach(at + 1)
            assert self.reader.map[at] == value
            assert all(view[at] == value for end, view in self.views if at < end)

    def teardown(self) -> None:
        self.writer.close()
        self.reader.close()
        assert all(view[at] == value for at, value in self.expected.items() for end, view in self.views if at < end)


TestGrowth = Growth.TestCase


def test_closing_releases_everything_once_the_last_array_is_gone() -> None:
    gc.collect()
    before = (mapped_areas(), open_areas())
    area = Area.create()
    view = np.frombuffer(area.map, np.uint8)
    area.reserve(4 * FIRST_BYTES)
    area.close()
    area.close()
    assert view[0] == 0
    assert (mapped_areas(), open_areas()) == (before[0] + 1, before[1] + 1)
    del view
    assert (mapped_areas(), open_areas()) == before


def test_untouched_memory_costs_nothing() -> None:
    area = Area.create()
    area.reserve(1 << 36)
    area.map[1 << 35] = 1
    assert os.fstat(area.fileno()).st_blocks * 512 <= 1 << 22
    area.close()
