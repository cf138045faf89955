"""Time the hosted members of a pool, by how many requests are under way at once.

    python -m deployments.llm.profile POOL.yaml --prices PRICES.yaml --data DATA.npz -o PROFILES.yaml

The requests are real, and a provider bills them: `--runs` batches of each size, 31 requests for one run of each.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from coe.errors import CoeError
from coe.files import read, read_prices, write
from coe.profiler.hosted import BATCH_SIZES, profile_hosted
from coe.profiler.predict import load_data
from coe.types import Pool


def main() -> int:
    """Write the profiles."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--prices", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    today = datetime.date.today().isoformat()
    try:
        profiles = profile_hosted(
            read(given.pool, Pool),
            given.pool.resolve().parent,
            read_prices(given.prices),
            load_data(given.data).x,
            runs=given.runs,
            today=today,
        )
        write(given.out, profiles, f"Requests timed on {today}.")
    except CoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    sizes = ", ".join(str(size) for size in BATCH_SIZES)
    print(f"wrote {given.out}: {len(profiles.profiles)} hosted models, {sizes} requests at once", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
