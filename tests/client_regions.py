"""Segments that clients share with a server of `digits`, by either of tritonclient's modules: `http` or `grpc`."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

IMAGE_BYTES, SCORES_BYTES = 4 * 64, 4 * 10
Images = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
_numbers = itertools.count()


def images(rows: int) -> Images:
    return np.random.default_rng(0).random((rows, 1, 8, 8), np.float32)


@contextmanager
def region(client: Any, name: str, size_bytes: int) -> Iterator[object]:
    """A segment, registered under `name`."""
    key = (
        f"/tests-{os.getpid()}-{next(_numbers)}"  # no name as efserve's own client gives them: other tests count those
    )
    handle = shm.create_shared_memory_region(name, key, size_bytes)
    try:
        client.register_system_shared_memory(name, key, size_bytes)
        yield handle
    finally:
        shm.destroy_shared_memory_region(handle)


@dataclass(frozen=True)
class Requests:
    """Requests as one of tritonclient's modules has them."""

    triton: Any

    def in_memory(self, name: str, rows: int, offset: int = 0) -> Any:
        tensor = self.triton.InferInput("input", [rows, 1, 8, 8], "FP32")
        tensor.set_shared_memory(name, rows * IMAGE_BYTES, offset)
        return tensor

    def to_memory(self, name: str, rows: int, offset: int = 0) -> Any:
        wanted = self.triton.InferRequestedOutput("scores")
        wanted.set_shared_memory(name, rows * SCORES_BYTES, offset)
        return wanted

    def plain(self, client: Any, values: Images) -> Any:
        """The scores without shared memory."""
        tensor = self.triton.InferInput("input", list(values.shape), "FP32")
        tensor.set_data_from_numpy(values)
        return client.infer("digits", [tensor]).as_numpy("scores")

    def check_what_is_wrong_is_told(self, client: Any) -> None:
        """Each mistake with a region has its sentence."""
        with pytest.raises(InferenceServerException, match="Unable to open shared memory region: '/nope'"):
            client.register_system_shared_memory("x", "/nope", 16)
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'x'"):
            client.infer("digits", [self.in_memory("x", 1)])
        with region(client, "in", 4096) as given:
            assert given
            with pytest.raises(InferenceServerException, match="'in' already in manager"):
                client.register_system_shared_memory("in", "/in", 16)
            with pytest.raises(InferenceServerException, match="Invalid offset"):
                client.infer("digits", [self.in_memory("in", 1, 4096)])
            wanted = self.triton.InferRequestedOutput("scores")
            wanted.set_shared_memory("in", SCORES_BYTES - 1)
            with pytest.raises(InferenceServerException, match="should be at least 40 bytes to hold the results"):
                client.infer("digits", [self.in_memory("in", 1)], outputs=[wanted])
            client.unregister_system_shared_memory("in")
            with pytest.raises(InferenceServerException, match="Unable to find"):
                client.infer("digits", [self.in_memory("in", 1)])
