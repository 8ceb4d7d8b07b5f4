"""Where instances run: what each was to get of its device, and what it has got."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from efserve.devices.cgroup import core_ranges
from efserve.frontend.service import Placement
from efserve.reports.tables import PlainTable


def is_worth_showing(placements: Sequence[Placement]) -> bool:
    """Whether there is more to tell than that everything runs anywhere on the CPU."""
    return any(place.cores or place.memory_limit_bytes or place.device != "cpu" for place in placements)


def placements_table(placements: Sequence[Placement]) -> Table:
    """A row per worker process."""
    table = PlainTable()
    for column in ("model", "pid", "device", "asked", "obtained", "memory"):
        table.add_column(column, overflow="fold")
    for place in placements:
        table.add_row(
            escape(f"{place.model}/{place.version}"),
            str(place.pid),
            escape(place.device),
            _share(place),
            _obtained(place),
            _memory(place),
        )
    return table


def _share(place: Placement) -> str:
    by = f" by {place.means}" if place.means and place.share_pct else ""
    return f"{place.share_pct:g} %{by}" if place.share_pct else "-"


def _obtained(place: Placement) -> str:
    if place.state != "READY":
        return place.state.lower()
    pct = f" ({place.obtained_pct:.3g} %)" if place.obtained_pct else ""
    if place.sm_count:
        return f"{place.sm_count} SMs{pct}"
    if not place.cores:
        return "any core" if place.device == "cpu" else "the device"
    return f"core{'s' * (len(place.cores) > 1)} {core_ranges(place.cores)}{pct}"


def _memory(place: Placement) -> str:
    used = f"{place.rss_bytes / 2**20:.0f}"
    if not place.memory_limit_bytes:
        return f"{used} MiB"
    limit = f"{place.memory_limit_bytes / 2**20:.0f} MiB"
    if place.device != "cpu":
        return f"{used} MiB on the host, {limit} there"
    return f"[red]{used} of {limit}[/]" if place.is_beyond_memory else f"{used} of {limit}"
