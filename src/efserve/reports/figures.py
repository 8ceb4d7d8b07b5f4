"""Saves what matplotlib draws."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from efserve import files
from efserve.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", path: Path, dpi: int = 140) -> None:
    """Write a picture, folders included; UsageError where that cannot be, or the name's ending is of no picture."""
    picture = io.BytesIO()
    try:
        figure.savefig(picture, dpi=dpi, format=path.suffix.removeprefix(".") or None)
    except ValueError as exc:
        raise UsageError(f"cannot write the picture {path}: {exc}") from exc
    files.write(path, picture.getvalue())
