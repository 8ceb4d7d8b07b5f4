"""The levels of a benchmark, as users write them: `1:10`, `2:16:2`, `1,2,4`."""

from efserve.errors import UsageError

MAX_CONCURRENCY = 10_000


def parse_levels(text: str, option: str = "--concurrency") -> tuple[int, ...]:
    """Levels in the order given. Raises UsageError for anything but START:END[:STEP] or a list of numbers >= 1."""
    malformed = UsageError(f"{option}: expected START:END[:STEP] or a list such as 1,2,4; got '{text}'")
    separator = ":" if ":" in text else ","
    parts = [part.strip() for part in text.split(separator)]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise malformed
    numbers = [int(part) for part in parts]
    if separator == "," or len(numbers) == 1:
        levels = tuple(numbers)
    elif len(numbers) > 3:
        raise malformed
    else:
        start, end, step = (*numbers, 1)[:3]
        if step < 1 or end < start:
            raise UsageError(f"{option}: '{text}' has no levels: END must not be below START, nor STEP below 1")
        levels = tuple(range(start, end + 1, step))
    if not all(1 <= level <= MAX_CONCURRENCY for level in levels):
        raise UsageError(f"{option}: levels are from 1 to {MAX_CONCURRENCY}; got '{text}'")
    if len(set(levels)) < len(levels):
        raise UsageError(f"{option}: '{text}' names a level twice")
    return levels
