"""What a check says."""

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """How well something is; only a PROBLEM keeps efserve from doing what the machine could do."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and how to mend it in a sentence; nothing is to be mended where `advice` is empty."""

    state: State
    found: str
    advice: str = ""


def ok(found: str) -> Verdict:
    """All is well."""
    return Verdict(State.OK, found)


def warning(found: str, advice: str) -> Verdict:
    """It works, but not as well or as surely as it could."""
    return Verdict(State.WARNING, found, advice)


def problem(found: str, advice: str) -> Verdict:
    """Something that this machine could do does not work."""
    return Verdict(State.PROBLEM, found, advice)


def not_applicable(found: str, advice: str = "") -> Verdict:
    """There is nothing to judge here."""
    return Verdict(State.NOT_APPLICABLE, found, advice)
