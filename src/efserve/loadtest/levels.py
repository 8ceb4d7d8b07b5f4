"""The levels of a benchmark, as users write them: `1:10`, `2:16:2`, `1,2,4`, `100:1000:100`."""

import math

from efserve.errors import UsageError

MAX_CONCURRENCY = 10_000
MAX_RATE = 1e6
MAX_LEVELS = 10_000


def parse_levels(text: str, option: str = "--concurrency") -> tuple[int, ...]:
    """Levels in the order given. Raises UsageError for anything but START:END[:STEP] or a list of numbers >= 1."""
    levels = _levels(text, option)
    if not all(level.is_integer() and 1 <= level <= MAX_CONCURRENCY for level in levels):
        raise UsageError(f"{option}: levels are whole numbers from 1 to {MAX_CONCURRENCY}; got '{text}'")
    return tuple(int(level) for level in levels)


def parse_rates(text: str, option: str = "--request-rate") -> tuple[float, ...]:
    """Requests per second, in the same form; they need not be whole. Raises UsageError."""
    rates = _levels(text, option)
    if not all(0 < rate <= MAX_RATE for rate in rates):
        raise UsageError(f"{option}: rates are above 0 and up to {MAX_RATE:.0f} requests/s; got '{text}'")
    return rates


def parse_range(text: str, option: str = "--request-rate") -> tuple[float, float, float]:
    """START, END and STEP (0: not given) of a range of rates. Raises UsageError."""
    numbers = [_number(part) for part in text.split(":")]
    if len(numbers) not in (2, 3) or any(number is None for number in numbers):
        raise UsageError(f"{option}: a load shape needs a range of rates, START:END[:STEP]; got '{text}'")
    low, high, step = ([number or 0.0 for number in numbers] + [0.0])[:3]
    if not 0 <= low < high <= MAX_RATE or (len(numbers) == 3 and not 0 < step <= high - low):
        raise UsageError(f"{option}: a load shape needs START below END, and STEP not above their difference: '{text}'")
    return low, high, step


def _levels(text: str, option: str) -> tuple[float, ...]:
    malformed = UsageError(f"{option}: expected START:END[:STEP] or a list such as 1,2,4; got '{text}'")
    separator = ":" if ":" in text else ","
    numbers = []
    for part in text.split(separator):
        number = _number(part)
        if number is None:
            raise malformed
        numbers.append(number)
    if separator == "," or len(numbers) == 1:
        levels = tuple(numbers)
    elif len(numbers) > 3:
        raise malformed
    else:
        start, end, step = (*numbers, 1.0)[:3]
        if step <= 0 or end < start:
            raise UsageError(f"{option}: '{text}' has no levels: END must not be below START, and STEP be above 0")
        if (end - start) / step >= MAX_LEVELS:
            raise UsageError(f"{option}: '{text}' has more than {MAX_LEVELS} levels; choose a larger STEP")
        levels = tuple(start + index * step for index in range(int((end - start) / step + 1e-9) + 1))
    if len(set(levels)) < len(levels):
        raise UsageError(f"{option}: '{text}' names a level twice")
    return levels


def _number(part: str) -> float | None:
    word = part.strip()
    if not word.isascii() or len(word) > 12 or not word.replace(".", "", 1).isdigit():
        return None
    number = float(word)
    return number if math.isfinite(number) else None
