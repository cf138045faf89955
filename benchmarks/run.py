"""Every benchmark, one after the other.

python -m benchmarks.run [--out FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("decide", "coverage", "placement")


def main() -> int:
    """Run all; non-zero if one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".coe/benchmarks"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    codes = [
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--json", out / f"{name}.json"], check=False
        ).returncode
        for name in BENCHMARKS
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
