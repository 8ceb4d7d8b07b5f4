"""Files are whole or not there, whatever stops the writer; devices and pipes stay what they are."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from efserve import files
from efserve.errors import UsageError


def test_a_file_is_written_with_its_folders_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    files.write(path, b"1")
    files.write(path, b"22")
    assert path.read_bytes() == b"22"
    assert [each.name for each in path.parent.iterdir()] == ["c.json"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    files.write(link, b"x")
    assert link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    files.write(Path(os.devnull), b"x")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    with pytest.raises(UsageError, match="cannot write /dev/full: No space left on device"):
        files.write(Path("/dev/full"), b"x")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("place", [".", "file/below", "x" * 256])
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^cannot write .*: \w[\w ]+$"):
        files.write(tmp_path / place, b"x")


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path) -> None:
    """In a process that may write files of 1,000 bytes only."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = (
        "import resource, signal, sys; from pathlib import Path; from efserve import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "files.write(Path(sys.argv[1]), bytes(2000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert f"cannot write {path}: File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
