"""The system's limit of open files, which a load of many connections reaches first."""

import resource

from efserve.errors import UsageError

SPARE_FILES = 100  # beside the connections


def allow_connections(count: int) -> None:
    """Raise this process's limit where so many connections need more; UsageError where it may not."""
    needed = count + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(f"{count} connections need {needed} open files, the system allows {hard}; see `ulimit -n`")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
