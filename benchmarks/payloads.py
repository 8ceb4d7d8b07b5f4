"""What large requests, several rows per request and dynamic shapes cost, relative to their bytes.

    python benchmarks/payloads.py [--seconds 3]

Each case sends the same bytes in another form; the answer is one float per row, so that the request is what costs.
Reference: one row of a static shape, a batch of one. Ratio: time per byte of the case over that of the reference.
"""

import argparse
import tempfile
from pathlib import Path

from harness import make_first_value, serving, write_request, wrk

IMAGE = (3, 224, 224)
LARGE = (16, 2**20)  # 64 MiB less nothing: the largest request that the default limit lets through is a little smaller


def main() -> None:
    """Prints one row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_first_value(root, "static", IMAGE)
        make_first_value(root, "dynamic", ("c", "h", "w"))
        make_first_value(root, "large", LARGE)
        body = root / "request.bin"
        cases = [
            ("static, 1 row (reference)", "static", (1, *IMAGE)),
            ("static, 4 rows", "static", (4, *IMAGE)),
            ("static, 8 rows", "static", (8, *IMAGE)),
            ("dynamic, 1 row", "dynamic", (1, *IMAGE)),
            ("dynamic, 8 rows", "dynamic", (8, *IMAGE)),
            ("64 MiB, 1 row", "large", (1, *LARGE)),
        ]
        with serving(root, "--max-request-bytes", str(2**27)) as server:
            print(f"{'case':28}{'bytes':>12}{'req/s':>10}{'us per MB':>12}{'ratio':>8}{'errors':>8}")
            reference = 0.0
            for name, model, shape in cases:
                head_bytes = write_request(body, shape)
                size = body.stat().st_size
                result = wrk(f"{server.url}/v2/models/{model}/infer", body, head_bytes, 1, seconds)
                cost = 1e6 / result.requests_per_s / (size / 1e6)
                reference = reference or cost
                row = f"{size:12,}{result.requests_per_s:10,.1f}{cost:12.1f}{cost / reference:8.2f}{result.errors:8}"
                print(f"{name:28}{row}", flush=True)


if __name__ == "__main__":
    main()
