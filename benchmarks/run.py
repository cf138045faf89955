"""Every benchmark, one after the other.

python -m benchmarks.run [--out FOLDER] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "decide",
    "coverage",
    "audits",
    "placement",
    "simulator_speed",
    "simulator_theory",
    "serving",
    "overload",
    "chaos",
    "soak",
    "ledger_report",
)
WITH_DATA = {
    "placement": "",
    "heterogeneous": "",
    "edge_cloud": "",
    "scenarios": "",
    "gears": "",
    "search_speed": "vision_imagenet",
    "cascades": "vision_imagenet",
    "freeze": "images_cifar10",
}
"""Benchmarks that take --data, and the folder within it."""


def main() -> int:
    """Run all; non-zero if one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".coe/benchmarks"))
    parser.add_argument(
        "--data", type=Path, help="folder of published data; without it those that need it are left out"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    codes = []
    for name in dict.fromkeys((*BENCHMARKS, *WITH_DATA)):
        data = [] if args.data is None or name not in WITH_DATA else ["--data", args.data / WITH_DATA[name]]
        if not data and name not in BENCHMARKS:
            print(f"{name}: left out, it needs --data", file=sys.stderr)
            continue
        command = [sys.executable, "-m", f"benchmarks.{name}", *data, "--json", args.out / f"{name}.json"]
        codes.append(subprocess.run(command, check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
