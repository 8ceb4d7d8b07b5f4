"""A process that builds a plan in the folder that it is given: says so, and stores the plan when it is told to."""

import sys
from pathlib import Path

from efserve.engines.tensorrt_cache import PlanCache
from efserve.engines.tensorrt_plan import Build, Machine

BUILD = Build(Machine("GPU", "9.0", "11.1"), "fp32", "ab", ())
SECRET = b"s" * 32

if __name__ == "__main__":
    with PlanCache(Path(sys.argv[1]), SECRET).building(BUILD, 10, lambda text: None):
        sys.stdout.write("building\n")
        sys.stdout.flush()
        if sys.stdin.readline():
            PlanCache(Path(sys.argv[1]), SECRET).store(BUILD, b"plan")
