"""How far a run of the profiler is, for whoever shows it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is; `remark` is a sentence for the user, often empty."""

    done_rows: int
    total_rows: int
    doing: str
    remark: str = ""
