"""The two rich consoles of the command line: results on stdout, progress and remarks on stderr."""

from functools import cache

from rich.console import Console


@cache
def out() -> Console:
    """Console for what a command was asked for."""
    return Console(highlight=False)


@cache
def err() -> Console:
    """Console for progress, warnings and tables that accompany machine output."""
    return Console(stderr=True, highlight=False)
