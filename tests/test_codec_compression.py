"""Content codings: round trips, damage, bombs, and what Accept-Encoding asks for."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.codec.compression import MAX_MEMBERS, choose_encoding, deflate, inflate
from efserve.errors import InvalidRequest, Unsupported

LIMIT = 1 << 20


@given(st.lists(st.binary(max_size=200), max_size=4), st.sampled_from(["gzip", "deflate"]))
def test_round_trip(parts: list[bytes], encoding: str) -> None:
    assert bytes(inflate(deflate(parts, encoding), encoding, LIMIT)) == b"".join(parts)


def test_other_peoples_streams() -> None:
    assert bytes(inflate(gzip.compress(b"one") + gzip.compress(b"two"), "gzip", LIMIT)) == b"onetwo"
    assert bytes(inflate(memoryview(zlib.compress(b"zlib")), "deflate", LIMIT)) == b"zlib"
    assert bytes(inflate(b"plain", "identity", LIMIT)) == b"plain"
    assert zlib.decompress(deflate([b"x"], "deflate")) == b"x"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_stops_at_the_limit(encoding: str) -> None:
    bomb = deflate([bytes(LIMIT + 1)], encoding)
    with pytest.raises(InvalidRequest, match=r"maximum allowed value of 1048576 bytes.*--http-max-input-size"):
        inflate(bomb, encoding, LIMIT)
    assert len(inflate(bomb, encoding, LIMIT + 1)) == LIMIT + 1


def test_many_members_take_no_time() -> None:
    assert bytes(inflate(gzip.compress(b"x") * MAX_MEMBERS, "gzip", LIMIT)) == b"x" * MAX_MEMBERS
    big = gzip.compress(bytes(range(256)) * 1000, 0)  # longer than what is inflated in one step
    assert len(inflate(big * 4, "gzip", LIMIT)) == 4 * 256_000
    with pytest.raises(InvalidRequest, match="more than 1024 gzip members"):
        inflate(gzip.compress(b"") * (MAX_MEMBERS + 1), "gzip", LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_every_truncation_is_an_error(encoding: str) -> None:
    data = deflate([b"some text, some text"], encoding)
    for cut in range(len(data)):
        with pytest.raises(InvalidRequest, match="not valid"):
            inflate(data[:cut], encoding, LIMIT)
    with pytest.raises(InvalidRequest, match="not valid"):
        inflate(data + b"junk", encoding, LIMIT)


def test_an_unknown_coding_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="Content-Encoding 'br' is not supported"):
        inflate(b"", "br", LIMIT)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", ""),
        ("gzip;q=0.2, identity;q=0.9", ""),
        ("br, *;q=0.1", "gzip"),
        ("*;q=0", ""),
        ("gzip;q=bad", ""),
        ("identity", ""),
        ("br", ""),
    ],
)
def test_what_the_client_asks_for(accept: str, chosen: str) -> None:
    assert choose_encoding(accept) == chosen
