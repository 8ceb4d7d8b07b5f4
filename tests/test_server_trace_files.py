"""Trace files are written in order by a thread, and what is lost is told."""

import os
from pathlib import Path

import pytest

from efserve.server.trace_files import TraceFiles


def test_lines_are_in_their_files_in_order_when_it_is_closed(tmp_path: Path) -> None:
    files = TraceFiles()
    for number in range(1000):
        files.write(tmp_path / str(number // 300), b"%d\n" % number)
    files.close()
    texts = [(tmp_path / str(part)).read_text() for part in range(4)]
    assert "".join(texts).split() == [str(number) for number in range(1000)]
    assert [len(text.split()) for text in texts] == [300, 300, 300, 100]
    files.write(tmp_path / "0", b"again\n")
    files.close()
    assert (tmp_path / "0").read_text().endswith("299\nagain\n")


def test_what_the_disk_does_not_keep_up_with_is_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "slow"
    os.mkfifo(path)  # nobody can open it to write before somebody reads
    files = TraceFiles(most_bytes=100)
    for number in range(50):
        files.write(path, b"%09d\n" % number)
    with os.fdopen(os.open(path, os.O_RDWR), "rb") as disk:
        assert [int(disk.readline()) for _ in range(10)] == list(range(10))
        files.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"the disk of {path} does not keep up with the traces: some are dropped from now on",
        "40 traces were dropped, for the disk did not keep up with them",
    ]


def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "hung"
    os.mkfifo(path)
    files = TraceFiles()
    files.write(path, b"1\n")
    files.write(path, b"2\n")
    files.close(timeout_s=0.01)
    assert "2 traces are lost: the disk did not take them in time" in caplog.text
    with os.fdopen(os.open(path, os.O_RDWR), "rb") as disk:  # so that the thread can end
        assert [disk.readline(), disk.readline()] == [b"1\n", b"2\n"]
        files.close()


def test_an_error_of_the_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = TraceFiles()
    missing = tmp_path / "missing"
    for number in range(3):
        files.write(missing / str(number), b"line\n")
    files.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"a trace cannot be written to {missing}/0: No such file or directory",
        "3 traces are lost: they could not be written",
    ]
    caplog.clear()
    files.write(missing / "0", b"line\n")
    files.write(tmp_path / "there", b"line\n")
    files.close()
    assert "No such file" in caplog.messages[0]
    assert caplog.messages[1:] == [f"traces are written to {tmp_path / 'there'} again; 1 could not be"]
