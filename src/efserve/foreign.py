"""The border to code that is not ours: a user's module, an exporter, a loader of files may raise anything."""

from collections.abc import Iterator
from contextlib import contextmanager

from efserve.errors import EfserveError


@contextmanager
def foreign(what_failed: str, error: type[EfserveError]) -> Iterator[None]:
    """Turns an exception of the block into `error`: what failed, and the exception's own message in one line."""
    try:
        yield
    except EfserveError:
        raise
    except Exception as exc:
        message = " ".join(str(exc).split()) or "no message"
        shown = message if len(message) <= 400 else f"{message[:100]} ... {message[-300:]}"
        raise error(f"{what_failed}: {type(exc).__name__}: {shown}") from exc
