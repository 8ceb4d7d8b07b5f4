"""`--share` and `--memory-limit`: what they may say."""

import pytest

from efserve.errors import UsageError
from efserve.shares import MemoryLimit, Share, parse_memory_limit, parse_share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("digits=50", Share("digits", 50)),
        ("digits=12.5%,gpu0", Share("digits", 12.5, "gpu0")),
        ("a=b=100,cpu", Share("a=b", 100, "cpu")),
    ],
)
def test_shares_are_read(text: str, share: Share) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "m", "=50", "m=", "m=0", "m=101", "m=nan", "m=half", "m=50,", "m=-5"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--share is '{text}', expected MODEL=PCT"):
        parse_share(text)


@pytest.mark.parametrize(
    ("text", "limit_bytes"),
    [
        ("m=4G", 4 * 2**30),
        ("m=512M", 2**29),
        ("m=1.5g", 3 * 2**29),
        ("m=2000000", 2000000),
        ("m=2048KiB", 2**21),
        ("m=1MB", 2**20),
    ],
)
def test_memory_limits_are_read(text: str, limit_bytes: int) -> None:
    assert parse_memory_limit(text) == MemoryLimit("m", limit_bytes)


@pytest.mark.parametrize(
    "text", ["", "m", "=4G", "m=", "m=0", "m=4X", "m=-1G", "m=G", "m=512", "m=1023K", "m=1025T", f"m={'9' * 400}"]
)
def test_what_is_no_memory_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--memory-limit is '{text}', expected MODEL=SIZE"):
        parse_memory_limit(text)
