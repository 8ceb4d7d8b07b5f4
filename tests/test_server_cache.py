"""The response cache: what it keeps, and what makes two requests the same."""

from hypothesis import given
from hypothesis import strategies as st

from efserve.inference import InferRequest, Outcome, OutputTensor
from efserve.server.cache import ResponseCache, request_key


def nobody(outcome: Outcome) -> None:
    raise AssertionError(outcome)


def request(*tensors: bytes) -> InferRequest:
    return InferRequest(tensors, tuple((1, len(tensor)) for tensor in tensors), 1, "k", nobody)


def answer(size: int) -> tuple[OutputTensor, ...]:
    return (OutputTensor((1, size), bytes(size)),)


def test_equal_requests_of_one_owner_have_one_key() -> None:
    key = request_key(b"m1", request(b"ab", b"c"))
    assert key == request_key(b"m1", request(b"ab", memoryview(b"c").tobytes()))
    assert key != request_key(b"m2", request(b"ab", b"c"))
    assert key != request_key(b"m1", request(b"a", b"bc"))
    reshaped = request(b"ab", b"c")
    reshaped.shapes = ((2, 1), (1, 1))
    assert key != request_key(b"m1", reshaped)


def test_the_least_used_leaves_first() -> None:
    cache = ResponseCache(3 * 356)
    for name in (b"a", b"b", b"c"):
        cache.put(name, answer(100))
    assert cache.get(b"a")
    cache.put(b"d", answer(100))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = ResponseCache(1000)
    cache.put(b"a", answer(10))
    cache.put(b"b", answer(1000))
    assert cache.get(b"a")
    assert cache.get(b"b") is None


@given(st.lists(st.tuples(st.binary(max_size=1), st.integers(0, 600)), max_size=60))
def test_it_never_grows_beyond_its_limit(puts: list[tuple[bytes, int]]) -> None:
    cache = ResponseCache(1500)
    for key, size in puts:
        cache.put(key, answer(size))
        used = int(repr(cache).split()[3])
        assert used <= 1500
        assert (used == 0) == (len(cache) == 0)
