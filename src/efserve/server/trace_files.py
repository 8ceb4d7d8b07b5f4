"""Writes lines of traces to files: in order, in a thread of its own, so that a slow disk holds up no request."""

import logging
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from threading import Condition, Thread

log = logging.getLogger(__name__)

_MOST_BYTES = 64 << 20  # that wait for the disk
_CLOSE_S = 5.0  # for what still waits when the server ends


class TraceFiles:
    """Lines on their way to their files; what the disk does not take in time is dropped, and counted in the log.

    Invariants: `_held` lines of `_bytes` have been taken and not yet been written: those in `_waiting` and those that
    the thread is writing. The thread alone changes `_failed`, the lines that met an error since one was last written.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._changed = Condition()
        self._waiting: list[tuple[Path, bytes]] = []
        self._held = self._bytes = 0
        self._dropped = 0
        self._failed = 0
        self._is_closing = False
        self._thread: Thread | None = None

    def write(self, path: Path, line: bytes) -> None:
        """Appends a line to a file soon; never waits for the disk."""
        with self._changed:
            is_full = self._bytes > 0 and self._bytes + len(line) > self._most_bytes
            if is_full:
                self._dropped += 1
            else:
                self._waiting.append((path, line))
                self._held += 1
                self._bytes += len(line)
                self._changed.notify_all()
            is_first = is_full and self._dropped == 1
        if is_first:
            log.warning("the disk of %s does not keep up with the traces: some are dropped from now on", path)
        if self._thread is None:
            self._thread = Thread(target=self._run, name="traces", daemon=True)  # daemon: a disk may hang for ever
            self._thread.start()

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Returns when everything taken is in the files, or when time is over, and says in the log what is lost."""
        if self._thread is None:
            return
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("%d traces are lost: the disk did not take them in time", self._held + self._dropped)
            return
        if self._failed:
            log.error("%d traces are lost: they could not be written", self._failed)
        self._failed, self._is_closing, self._thread = 0, False, None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._dropped or self._is_closing)
                lines, self._waiting = self._waiting, []
                dropped = 0
                if not lines:  # the disk has caught up
                    dropped, self._dropped = self._dropped, 0
            if dropped:
                log.warning("%d traces were dropped, for the disk did not keep up with them", dropped)
            elif not lines:
                return
            for path, group in groupby(lines, itemgetter(0)):
                self._append(path, [line for _, line in group])
            with self._changed:
                self._held -= len(lines)
                self._bytes -= sum([len(line) for _, line in lines])

    def _append(self, path: Path, lines: list[bytes]) -> None:
        try:
            with path.open("ab") as file:
                file.writelines(lines)
        except OSError as exc:
            if not self._failed:
                log.error("a trace cannot be written to %s: %s", path, exc.strerror)
            self._failed += len(lines)
            return
        if self._failed:
            log.warning("traces are written to %s again; %d could not be", path, self._failed)
            self._failed = 0
