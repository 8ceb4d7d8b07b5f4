"""Answers to requests that have been asked before: one store for all models that want it, limited in bytes."""

import time
from collections import OrderedDict
from hashlib import blake2b
from uuid import uuid4

from efserve.counters import ModelCounters
from efserve.inference import Buffer, InferRequest, Outcome, Outputs

_ENTRY_BYTES = 256  # about what an entry costs beside its tensors


class ResponseCache:
    """The most recently used answers; the oldest leave when there is no room."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[bytes, Outputs] = OrderedDict()
        self._used_bytes = 0

    def __repr__(self) -> str:
        return f"<ResponseCache {len(self._entries)} answers, {self._used_bytes} of {self._limit_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Outputs | None:
        """The answer, which counts as used now."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Keep an answer, unless it is larger than the whole cache."""
        size_bytes = _size_bytes(outputs)
        if size_bytes > self._limit_bytes or key in self._entries:
            return
        self._entries[key] = outputs
        self._used_bytes += size_bytes
        while self._used_bytes > self._limit_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._used_bytes -= _size_bytes(oldest)


class VersionCache:
    """The part of a cache that is of one loaded model version: what another load answered is not this one's answer."""

    def __init__(self, cache: ResponseCache, counters: ModelCounters) -> None:
        self._cache = cache
        self._counters = counters
        self._owner = uuid4().bytes

    def answers(self, request: InferRequest) -> bool:
        """Answers the request if it has been answered before; else has its answer kept."""
        key = request_key(self._owner, request)
        outputs = self._cache.get(key)
        spent_ns = time.monotonic_ns() - request.arrival_ns
        if outputs is not None:
            self._counters.cache_hit(spent_ns)
            request.done(outputs)
            return True
        self._counters.cache_miss(spent_ns)
        answer = request.done

        def keep(outcome: Outcome) -> None:
            answer(outcome)
            if isinstance(outcome, tuple):
                self._cache.put(key, outcome)

        request.done = keep
        return False


def request_key(owner: bytes, request: InferRequest) -> bytes:
    """Equal for two requests exactly when the same owner (a loaded model version) gives them the same answer."""
    digest = blake2b(owner, digest_size=32)
    for shape, tensor in zip(request.shapes, request.tensors, strict=True):
        digest.update(b"%r %d " % (shape, len(tensor)))
        digest.update(tensor if isinstance(tensor, Buffer) else bytes(tensor))
    return digest.digest()


def _size_bytes(outputs: Outputs) -> int:
    return _ENTRY_BYTES + sum(len(output.data) for output in outputs)
