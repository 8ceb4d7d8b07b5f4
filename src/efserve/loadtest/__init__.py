"""`efserve bench`: load on a v2 server, measured level by level.

`run.py` composes it; `closed_loop.py` is the hot path. Statistics are `stats.py`, tables are `reports/`.
"""
