"""Levels as users write them, and the options that go with them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.errors import UsageError
from efserve.loadtest.config import BenchConfig
from efserve.loadtest.levels import parse_levels


@given(st.integers(1, 500), st.integers(0, 300), st.integers(1, 50))
def test_ranges_include_their_end(start: int, more: int, step: int) -> None:
    levels = parse_levels(f"{start}:{start + more}:{step}")
    assert levels == tuple(range(start, start + more + 1, step))
    if step == 1:
        assert parse_levels(f" {start} : {start + more} ") == levels


@given(st.lists(st.integers(1, 10_000), min_size=1, unique=True))
def test_lists_keep_their_order(levels: list[int]) -> None:
    assert parse_levels(",".join(map(str, levels))) == tuple(levels)


@pytest.mark.parametrize("text", ["", "x", "1:", ":", "1:2:3:4", "1,,2", "-1", "1e3", "1:2,3", "\u0661", "9" * 5000])
def test_anything_else_is_malformed(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_levels(text)
    assert str(caught.value) == f"--concurrency: expected START:END[:STEP] or a list such as 1,2,4; got '{text}'"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "from 1 to"),
        ("1.5", "whole numbers"),
        ("1,10001", "from 1 to"),
        ("5:4", "has no levels"),
        ("1:4:0", "has no levels"),
        ("2,2", "twice"),
    ],
)
def test_levels_that_cannot_be_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_levels(text)


def test_three_windows_have_to_fit_into_the_duration() -> None:
    assert BenchConfig().window_s == 1.0
    assert BenchConfig(duration_s=1.5).window_s == 0.5
    assert BenchConfig(duration_s=9, window_ms=3000).window_s == 3.0
    BenchConfig(duration_s=9, window_ms=3000).check()
    with pytest.raises(UsageError, match="--window 3001"):
        BenchConfig(duration_s=8.9, window_ms=3001).check()


def test_options_of_the_embedded_server_exclude_a_url() -> None:
    config = BenchConfig(instances=2, max_batch=8, model_repository=("a", "b"))
    assert config.server_options() == {"model_repository": ("a", "b"), "instances": 2, "max_batch": 8}
    config.check()
    with pytest.raises(UsageError, match="--model-repository is for the embedded server"):
        replace(config, url="http://127.0.0.1:1").check()


def test_a_version_needs_a_model() -> None:
    with pytest.raises(UsageError, match="--model-version needs --model"):
        BenchConfig(model_version="1").check()
