"""Intended send times: rates, order, seeds, shapes; traces and what is wrong with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efserve.arrivals import DISTRIBUTIONS, SHAPES, RateCurve, intended, parse_trace, shaped, steady
from efserve.errors import UsageError

distributions = st.sampled_from(DISTRIBUTIONS)
seeds = st.integers(0, 1000)
rates = st.floats(0.5, 2000)


def curves() -> st.SearchStrategy[RateCurve]:
    return st.one_of(
        st.builds(steady, rates, st.floats(0.1, 5)),
        st.builds(
            lambda shape, low, more, duration: shaped(shape, low, low + more, duration),
            st.sampled_from(SHAPES),
            rates,
            rates,
            st.floats(0.1, 5),
        ),
    )


@given(curves(), distributions, seeds, st.floats(0.3, 4))
def test_times_ascend_within_the_level_and_come_again_from_the_seed(
    curve: RateCurve, distribution: str, seed: int, cv: float
) -> None:
    times = intended(curve, distribution, seed, cv)
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times <= curve.duration_s)).all()
    assert (times == intended(curve, distribution, seed, cv)).all()


@given(curves(), st.sampled_from([("constant", 1.0), ("poisson", 1.0), ("gamma", 0.5), ("gamma", 2.0)]), seeds)
def test_as_many_requests_as_the_rate_asks_for(curve: RateCurve, kind: tuple[str, float], seed: int) -> None:
    distribution, cv = kind
    total = float(curve.expected()[-1])
    count = len(intended(curve, distribution, seed, cv))
    # variance of a renewal process: cv^2 * total in the long run, some more in the short one
    slack = 1 if distribution == "constant" else 6 * (cv * np.sqrt(total) + cv**2 + 1)
    assert abs(count - total) <= slack


@given(st.floats(1, 2000), st.floats(0.5, 3))
def test_constant_gaps_are_the_inverse_of_the_rate(rate: float, duration_s: float) -> None:
    times = intended(steady(rate, duration_s), "constant", 0)
    assert times[0] == 0
    assert np.diff(times) == pytest.approx(1 / rate)


@pytest.mark.parametrize(("distribution", "cv"), [("poisson", 1.0), ("gamma", 0.5), ("gamma", 3.0)])
def test_gaps_vary_as_they_should(distribution: str, cv: float) -> None:
    gaps = np.diff(intended(steady(1000, 200), distribution, 7, cv))
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_other_seeds_give_other_times() -> None:
    one, other = (intended(steady(100, 1), "poisson", seed) for seed in (1, 2))
    assert one[:5].tolist() != other[:5].tolist()


def counts(shape: str, low: float, high: float, parts: int, step: float = 0.0) -> list[int]:
    """Requests in each of so many equal parts of 10 s."""
    times = intended(shaped(shape, low, high, 10.0, step), "constant", 0)
    return [int(count) for count in np.histogram(times, parts, (0, 10))[0]]


def test_shapes_are_what_their_names_say() -> None:
    assert counts("step", 100, 500, 5) == pytest.approx([200, 400, 600, 800, 1000], abs=1)
    assert counts("step", 100, 200, 2, step=100) == pytest.approx([500, 1000], abs=1)
    assert counts("ramp", 0, 1000, 2) == pytest.approx([1250, 3750], abs=1)
    assert counts("burst", 30, 300, 15) == pytest.approx([20, 20, 20, 20, 200] * 3, abs=1)
    assert counts("sine", 100, 300, 3) == pytest.approx([667] * 3, abs=1)
    assert counts("sine", 100, 300, 12)[:4] == pytest.approx([114, 220, 220, 114], abs=2)


def test_a_trace_counts_from_its_first_time() -> None:
    trace = parse_trace("timestamp,model\n# a comment\n10.5\n\n10.5, resnet\n11 bert # late\n", "t.csv")
    assert trace.time_s.tolist() == [0, 0, 0.5]
    assert trace.models == ("", "resnet", "bert")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it has no request"),
        ("# nothing\n", "it has no request"),
        ("1\nx\n", "line 2: expected SECONDS or SECONDS,MODEL; got 'x'"),
        ("1 a b", "line 1: expected SECONDS or SECONDS,MODEL; got '1 a b'"),
        ("1\n\n-1", "line 3: expected SECONDS"),
        ("1\nnan", "line 2: expected SECONDS"),
        ("2\n1", "line 2: 1 s is before the line above it, 2 s; sort the file by time"),
    ],
)
def test_a_wrong_trace_names_the_line(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=r"--schedule t\.csv") as caught:
        parse_trace(text, "t.csv")
    assert says in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_trace_or_refused(text: str) -> None:
    try:
        trace = parse_trace(text, "t")
    except UsageError:
        return
    assert len(trace.models) == trace.time_s.size > 0
