"""The log settings that clients may change while the server runs: which levels are shown, and in which form."""

import logging
import time
from typing import Any

from efserve.errors import InvalidRequest, Unavailable, Unsupported

_FLAGS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_FORMATS = {"default": None, "ISO8601": "%Y-%m-%dT%H:%M:%SZ"}


class LogSettings:
    """Settings of one logger and all below it, applied to the handlers that show its records."""

    def __init__(self, name: str = "efserve") -> None:
        self._logger = logging.getLogger(name)
        self._flags = {flag: self._logger.isEnabledFor(level) for flag, level in _FLAGS.items()}
        self._verbose = int(self._logger.isEnabledFor(logging.DEBUG))
        self._format = "default"

    def install(self) -> None:
        """Decide from now on what the handlers of the process show of this logger."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self.shows)

    def remove(self) -> None:
        """Leave the handlers alone again."""
        for handler in logging.getLogger().handlers:
            handler.removeFilter(self.shows)

    def shows(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be shown."""
        if not (record.name + ".").startswith(self._logger.name + "."):
            return True
        if record.levelno < logging.INFO:
            return self._verbose > 0
        flag = max((name for name, level in _FLAGS.items() if level <= record.levelno), key=_FLAGS.__getitem__)
        return self._flags[flag]

    def get(self) -> dict[str, object]:
        """The settings as the protocol prints them."""
        return {"log_file": "", **self._flags, "log_verbose_level": self._verbose, "log_format": self._format}

    def update(self, changes: dict[str, Any]) -> None:
        """Changes settings, all or none; None leaves one as it is. Errors as Triton's."""
        given = {name: value for name, value in changes.items() if value is not None}
        if "log_file" in given:
            raise Unsupported("log file location can not be updated through network protocol")
        for name in _FLAGS.keys() & given.keys():
            if not isinstance(given[name], bool):
                raise InvalidRequest(f"{name} is {given[name]!r}, expected true or false")
        verbose = given.get("log_verbose_level", self._verbose)
        if not isinstance(verbose, int) or isinstance(verbose, bool) or verbose < 0:
            raise InvalidRequest(f"log_verbose_level is {verbose!r}, expected a number of 0 or more")
        form = given.get("log_format", self._format)
        if form not in _FORMATS:
            raise Unavailable(f"invalid argument for --log_format, got: {form}")
        self._flags.update({name: given[name] for name in _FLAGS.keys() & given.keys()})
        self._verbose, self._format = verbose, form
        self._apply()

    def _apply(self) -> None:
        if self._verbose:
            self._logger.setLevel(logging.DEBUG)
        else:
            shown = [level for name, level in _FLAGS.items() if self._flags[name]]
            self._logger.setLevel(min(shown, default=logging.CRITICAL))
        for handler in logging.getLogger().handlers:
            formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", _FORMATS[self._format])
            if self._format != "default":
                formatter.converter = time.gmtime
            handler.setFormatter(formatter)
