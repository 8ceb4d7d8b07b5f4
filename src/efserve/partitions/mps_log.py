"""What an MPS server writes into its log about faults, as they come."""

import re
from pathlib import Path

_TELLS_A_FAULT = re.compile(r"\bfatal\b|\bFAULT\b")
_MOST_BYTES = 2**20  # of one look; what came before that is passed over


class FaultLog:
    """Reads server.log on from where it was read last; nothing that was there before the first look counts."""

    def __init__(self, log_directory: Path) -> None:
        self._path = log_directory / "server.log"
        self._at_bytes = -1

    def __repr__(self) -> str:
        return f"<FaultLog {self._path} at {self._at_bytes}>"

    def new_fault(self) -> str:
        """The last new line that tells a fault; empty where there is none, and no log."""
        try:
            size = self._path.stat().st_size
            if self._at_bytes < 0:
                self._at_bytes = size
            start = self._at_bytes if self._at_bytes <= size else 0  # a new log in its place
            with self._path.open("rb") as file:
                file.seek(max(start, size - _MOST_BYTES))
                data = file.read(_MOST_BYTES)
        except OSError:
            self._at_bytes = max(self._at_bytes, 0)
            return ""
        whole = data[: data.rfind(b"\n") + 1]  # a line that is being written is left for the next look
        self._at_bytes = max(start, size - _MOST_BYTES) + len(whole)
        lines = [line for line in whole.decode(errors="replace").splitlines() if _TELLS_A_FAULT.search(line)]
        return lines[-1].strip() if lines else ""
