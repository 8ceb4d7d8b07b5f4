"""Pictures that cannot be written are told in a sentence."""

from pathlib import Path

import pytest

from efserve.errors import UsageError

pytest.importorskip("matplotlib")


def test_pictures_are_saved_with_their_folders_or_refused(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from efserve.reports.figures import save

    save(Figure(), tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").stat().st_size
    with pytest.raises(UsageError, match=r"cannot write .*a\.png/b\.png: (Not a directory|File exists)"):
        save(Figure(), tmp_path / "new" / "a.png" / "b.png")
    with pytest.raises(UsageError, match=r"b\.xyz: Format 'xyz' is not supported"):
        save(Figure(), tmp_path / "b.xyz")
