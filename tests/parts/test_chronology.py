"""Splits in time: order, gaps and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimlab.parts.chronology import in_time


@given(n=st.integers(100, 5000), gap=st.integers(0, 10), window=st.integers(1, 5))
def test_no_window_and_no_horizon_reaches_over_a_gap(n, gap, window):
    parts = in_time(n, (0.6, 0.1, 0.3), gap)
    read = [{k for t in part for k in range(t - min(window, gap), t + 1)} for part in parts]
    assert not (read[0] & read[1] or read[1] & read[2] or read[0] & read[2])
    assert all(a.stop + gap == b.start for a, b in zip(parts, parts[1:], strict=False)) and parts[-1].stop <= n
    assert sum(map(len, parts)) > n - 2 * gap - 3


def test_shares_that_can_not_be_are_refused():
    assert in_time(10, (0.6, 0.2, 0.2)) == [range(6), range(6, 8), range(8, 10)]
    with pytest.raises(ValueError, match="at most 1"):
        in_time(10, (0.6, 0.6))
    with pytest.raises(ValueError, match="20 moments are too few"):
        in_time(20, (0.5, 0.5), gap=20)
