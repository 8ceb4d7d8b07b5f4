"""Saves what matplotlib draws."""

from pathlib import Path
from typing import TYPE_CHECKING

from efserve.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", path: Path, dpi: int = 140) -> None:
    """Write a picture, folders included; UsageError where that cannot be, or the name's ending is of no picture."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    except OSError as exc:
        raise UsageError(f"cannot write the picture {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"cannot write the picture {path}: {exc}") from exc
