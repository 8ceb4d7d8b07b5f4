"""Entry point of a worker process; started by `handle.py` only."""

import sys

from efserve.worker.child import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
