"""Why a process ended, with the last lines that it printed: put together here, and taken apart here."""

_OUTPUT = "; its last lines of output:\n"


def with_output(reason: str, output: str) -> str:
    """A reason and the lines printed; the reason alone where nothing was."""
    return f"{reason}{_OUTPUT}{output}" if output else reason


def without_output(reason: str) -> str:
    """What was said before the lines."""
    return reason.partition(_OUTPUT)[0]


def in_one_line(reason: str) -> str:
    """The first line of a reason, and the last of those printed unless that says the same, as a traceback's does."""
    said, _, output = reason.partition(_OUTPUT)
    first, *rest = [line.strip() for line in (*said.splitlines(), *output.splitlines()) if line.strip()] or [""]
    return first if not rest or rest[-1].endswith(first) else f"{first}: {rest[-1]}"
