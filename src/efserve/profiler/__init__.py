"""Profiling: `targets.py` says what to measure, `sampling.py` measures one point, `grid.py` goes over all of them."""
