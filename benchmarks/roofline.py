"""How far off an estimate is on a device that it has not seen: every device of two published tables is left out in turn.

    python -m benchmarks.roofline [--data FOLDER] [--quick] [--json OUT]

Example: COE_DATA=../shared/data python -m benchmarks.roofline --json roofline.json

timm: images per second of about 1,450 models at their largest batch, on two GPUs in fp16 (PyTorch 2.4) and on one CPU in
fp32. MLPerf Inference (v3.0 and v4.1, closed, offline): median throughput per accelerator of six benchmarks. "anchored"
estimates know the model's speed on the other devices, the rest know only its FLOPs, bytes and parameters. "factor" is the
one within which nine of ten estimates are.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np

from benchmarks.figures import publish
from coe.cost.roofline import Measured, Work, left_out_errors, peak_of
from coe.errors import InvalidInput
from coe.prices.accelerators import find
from coe.profiler.sources.asked import Asked
from coe.profiler.sources.timm import rows_of, work_of

AMORTISED = 64
"""MLPerf does not publish batch sizes; weights are counted as if read once per so many items."""

MLPERF: dict[str, tuple[float, float, float]] = {
    # benchmark: FLOPs, activation bytes and weight bytes per item, at one byte per value
    "resnet50": (8.2e9, 11.1e6, 25.6e6),
    "retinanet": (3.0e11, 4.0e8, 37e6),
    "bert-99": (1.3e11, 2.0e8, 335e6),
    "gptj-99": (2 * 6e9 * 2000, 6e9 * 128 / AMORTISED, 6e9),
    "llama2-70b-99": (2 * 70e9 * 580, 70e9 * 290 / AMORTISED, 70e9),
    "mixtral-8x7b": (2 * 13e9 * 400, 47e9 * 145 / AMORTISED, 47e9),
}
"""What one sample takes: model size x tokens for the language models (prompt and answer), convolutions else. Only their
proportions matter for anchored estimates."""


def timm(path: Path, gpus: bool, quick: bool) -> Iterator[Measured]:
    """GPU rows in fp16 and, without `gpus`, the CPU rows in fp32."""
    for row in rows_of(path, Asked(where={"torch": "pt240", "layout": "nchw"})):
        compiled, fp16 = row.line.text("compile") == "1", row.precision == "fp16"
        if compiled == fp16 or (gpus and not fp16) or (quick and crc32(row.model.encode()) % 20):
            continue
        work, kind = work_of(row), find(row.accelerator)
        if work is not None and kind is not None:
            member = f"{row.model}-{row.img_size:g}"
            yield Measured(
                member, work, peak_of(kind, row.precision), row.batch_size, row.batch_size / row.samples_per_s
            )


def mlperf(path: Path) -> Iterator[Measured]:
    """The median of all submissions per benchmark and accelerator, at int8 (or fp8) rates."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["benchmark"] in MLPERF and row["scenario"] == "offline" and row["samples_per_s_per_accel"]:
                found[row["benchmark"], row["accelerator"]].append(float(row["samples_per_s_per_accel"]))
    for (benchmark, called), rates in found.items():
        kind = find(called)
        if kind is None:
            continue
        try:
            peak = peak_of(kind, "int8")
        except InvalidInput:
            continue
        flops, activations, weights = MLPERF[benchmark]
        work = Work(flops, activations, weights)
        yield Measured(benchmark, work, peak, AMORTISED, AMORTISED / float(np.median(rates)))


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], epilog=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    default = Path(os.environ.get("COE_DATA", Path(__file__).parents[2] / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with throughput_timm and throughput_mlperf")
    parser.add_argument("--quick", action="store_true", help="one in twenty of the timm models")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    table = args.data / "throughput_timm/timm_infer.csv.gz"
    if not table.exists():
        raise SystemExit(f"{table} does not exist; give --data or set COE_DATA")
    sets = {
        "timm GPUs": list(timm(table, gpus=True, quick=args.quick)),
        "timm + CPU": list(timm(table, gpus=False, quick=args.quick)),
        "MLPerf": list(mlperf(args.data / "throughput_mlperf/mlperf_inference_closed.csv.gz")),
    }
    published: list[dict[str, object]] = []
    for name, measured in sets.items():
        for anchored in (True, False):
            for left in left_out_errors(measured, anchored):
                published.append(
                    {
                        "table": name,
                        "left out": left.device,
                        "estimate": "anchored" if anchored else "work alone",
                        "predictions": left.predictions,
                        "predicted / measured": left.bias,
                        "median error": left.median_error,
                        "factor": left.factor,
                    }
                )
    publish("roofline", published, args.json)


if __name__ == "__main__":
    main()
