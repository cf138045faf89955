"""What cascades save on recorded predictions of real models, against published methods and single models.

python -m benchmarks.cascades --data FOLDER --json OUT.json [--task gsm8k] [--reference MODEL ...] [--member MODEL ...]

FOLDER holds predictions in one of three forms (see coe/profiler/recorded): most probable classes (labels.npz, top5.npz,
models.csv), free-text answers (questions, answers, completion_tokens, models.csv), or services (TASK.npz, meta.csv). Items are
split at random: methods choose on the selection split, `coe` certifies on another, and all are reported on a third.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.opponents import (
    Choice,
    Outcome,
    cascade_choice,
    cheapest,
    dearer_at_no_less,
    neural_pairs,
    on_grid,
    oracle,
    scored_lists,
    single,
)
from coe.cascade.calibrate import front_path
from coe.cascade.certify import Observed
from coe.cascade.evaluate import route
from coe.cascade.presets import preset
from coe.cascade.search import search
from coe.cascade.space import Space
from coe.cascade.temperature import fitted_temperatures
from coe.cost.calls import CallCosts, call_costs, constant
from coe.learned.gate_rule import save
from coe.learned.searching import learned_front
from coe.profiler.recorded import Asked, import_predictions
from coe.table import PredictionTable
from coe.types import Cascade, Front

LOSSES_PT = (0.0, 0.2, 0.5, 1.0)
DELTA = 0.05
MARGIN = 1.645
"""Standard errors by which an uncertified choice must look better than it is asked to be."""
SPLITS = {"calibration": 0.35, "certification": 0.4, "test": 0.25}
SPEED = "img_per_s_rtx4090_amp"
GATES = Path(tempfile.mkdtemp(prefix="coe-gates-"))
MOST_LISTED = 7
"""Models among which FrugalGPT-style lists are built: those on the front of single models, dearest first."""


@dataclass(frozen=True)
class Data:
    """One data set, split."""

    name: str
    table: PredictionTable
    costs: CallCosts
    notes: tuple[str, ...]

    def split(self, *names: str) -> tuple[PredictionTable, CallCosts]:
        """The items of some splits, with their costs."""
        mask = np.isin(self.table.splits, names)
        return self.table.rows(mask), self.costs.rows(mask)


def loaded(folder: Path, task: str, members: tuple[str, ...], cost: str, seed: int) -> Data:
    """The data set of a folder, read by the importers of the product."""
    if (folder / "labels.npz").exists():
        kind, cost = "topk", cost or SPEED
    elif (folder / "meta.csv").exists():
        kind, cost = "apis", cost or "usd_per_10k"
    else:
        kind, cost = "texts", cost or "listed-or-size-class"
    notes: tuple[str, ...] = ()
    if kind == "topk" and cost not in (folder / "models.csv").read_text().splitlines()[0].split(","):
        notes = (f"models.csv has no column {cost}, so every call counts as 1: what is saved is calls",)
        cost = ""
    asked = Asked(task=task, members=members, cost=cost, splits=SPLITS, seed=seed, complete=0.9, uncosted="drop")
    found = import_predictions(kind, folder, asked)
    calls = constant(dict.fromkeys(found.table.members, 1.0), "calls", "every call counts as 1")
    costs = calls if found.costs is None else call_costs(found.costs, found.table)
    name = f"{folder.name}{'/' + task if task else ''}"
    return Data(name, found.table, costs, (*notes, *found.notes))


def tasks_of(folder: Path) -> list[str]:
    """Data sets within a folder."""
    if (folder / "meta.csv").exists():
        return sorted(p.stem for p in folder.glob("*.npz"))
    if (folder / "labels.npz").exists():
        return [name for name in ("top5", "label_only") if (folder / f"{name}.npz").exists()]
    found = sorted({p.name.split("questions.csv")[0].rstrip("_") for p in folder.glob("*questions.csv*")})
    return found or [""]


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def searched(
    data: Data, space: Space, temperatures: dict[str, float] | None = None, extra: tuple[Cascade, ...] = ()
) -> Front:
    """The front of a space on the selection split."""
    started = time.time()
    dearest = max(data.costs.mean().values())
    front = search(
        data.table,
        data.costs,
        data.table.members[0],
        0.01,
        DELTA,
        replace(space, most_cost=dearest),
        temperatures=temperatures,
        extra=extra,
        threads=os.cpu_count() or 1,
        progress=_bar(space),
    )
    told(f"  {front.evaluated:,} configurations, {len(front.points)} on the front, {time.time() - started:.1f} s")
    return front


def _bar(space: Space) -> Any:
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(f"\r  {space.tiers} tiers: {done}/{total}", end="", file=sys.stderr)


def fronts(data: Data) -> dict[str, Front]:
    """The searches behind our rows and those of the published methods."""
    white_box = data.table.probs is not None
    wanted: dict[str, Space] = {"coe": _ours(data.table)}
    if white_box:
        wanted |= {name: preset(name) for name in ("idk-probability", "idk-entropy")}
    if len(data.table.members) > 3:
        wanted["abc-unanimity-3"] = replace(preset("agreement"), rules=("vote",))
    result = {}
    for name, space in wanted.items():
        told(f"{data.name}: searching {name}")
        fitted = fitted_temperatures(data.split("calibration")[0]) if name == "coe" and white_box else None
        extra = () if fitted is None else learned(data, fitted)
        result[name] = searched(data, space, fitted, extra)
    return result


def learned(data: Data, temperatures: dict[str, float]) -> tuple[Cascade, ...]:
    """Cascades with learned gates, whose files lie in a folder that lasts as long as the program."""
    started = time.time()
    sample, costs = data.split("calibration")
    found = learned_front(
        sample, costs, sample.members[0], lambda name, gate: save(GATES / f"{name}.safetensors", gate), temperatures
    )
    told(f"  {len(found)} cascades with learned gates, {time.time() - started:.1f} s")
    return found


def _ours(table: PredictionTable) -> Space:
    """Three tiers, carried and not. Answers without probabilities are cheap to search, so stages and pairs in the middle too."""
    if table.probs is not None:
        return replace(preset("coe"), rules=("score",))
    return replace(preset("coe"), dispatch=("parallel", "staged"), middle_members=2)


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    method: str
    choice: Choice
    certified: bool = False


class Bench:
    """All rows of one data set."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.selection, self.selection_costs = data.split("calibration")
        self.certification, _ = data.split("certification")
        self.chosen, self.chosen_costs = data.split("calibration", "certification")
        self.report, self.report_costs = data.split("test")
        self.fronts = fronts(data)
        self.path = front_path(self.fronts["coe"], 250)
        self.walked = [route(c, self.certification).answer for c in self.path]
        self.right: list[np.ndarray] = []
        self.both = [self._on_both(c) for c in self.path]
        self.candidates = self._candidates()

    def _on_both(self, cascade: Cascade) -> tuple[float, float, Choice]:
        """Cost and accuracy on all items but those of the report."""
        choice = cascade_choice(cascade)
        right, cost, _ = choice.run(self.chosen, self.chosen_costs)
        self.right.append(right)
        return float(cost.mean()), float(right.mean()), choice

    def _candidates(self) -> dict[str, list[tuple[float, float, Choice]]]:
        """Method -> (cost, accuracy, choice) on the selection split."""
        table, costs = self.selection, self.selection_costs
        found = {
            name: [(p.cost_per_1k / 1000, p.stats.accuracy, cascade_choice(p.cascade)) for p in front.points]
            for name, front in self.fronts.items()
            if name != "coe"
        }
        if "abc-unanimity-3" in found:  # the authors' default: three members, all agree
            points = self.fronts["abc-unanimity-3"].points
            found["abc-unanimity-3"] = [
                e
                for e, p in zip(found["abc-unanimity-3"], points, strict=True)
                if len(p.cascade.tiers) == 1 or (p.cascade.tiers[0].quorum == 3)
            ]
        if "idk-probability" in found:
            found["confidence-pairs"] = found["idk-probability"]
            grid = np.linspace(0.01, 0.99, 50)
            told(f"{self.data.name}: thresholds on grids")
            found["idk-probability"] = on_grid(table, costs, grid.tolist())
            tens = np.linspace(1 / len(table.classes), 0.95, 10)
            found["scikit-fallback-cv"] = on_grid(table, costs, tens.tolist())
            told(f"{self.data.name}: neural gates")
            found["idk-neural"] = neural_pairs(table, costs, self._useful(8), table.members)
        told(f"{self.data.name}: learned scorers over lists")
        found["frugalgpt-style"] = scored_lists(table, costs, self._useful(MOST_LISTED))
        alone = [self._single_on(m) for m in table.members]
        for name in found:  # every method may also fall back on one model
            found[name] = [*found[name], *alone]
        found["best-single"] = alone
        return found

    def _single_on(self, member: str) -> tuple[float, float, Choice]:
        choice = single(member)
        right, cost, _ = choice.run(self.selection, self.selection_costs)
        return float(cost.mean()), float(right.mean()), choice

    def _useful(self, most: int) -> list[str]:
        """Members on the front of single models, and the next most accurate, at most so many."""
        mean = self.selection_costs.mean()
        right = (self.selection.answers == self.selection.labels[:, None]).mean(axis=0)
        by_accuracy = [self.selection.members[i] for i in np.argsort(-right, kind="stable")]
        least, front = np.inf, []
        for member in by_accuracy:
            if mean[member] < least:
                least = mean[member]
                front.append(member)
        extra = [m for m in by_accuracy if m not in front]
        return (front + extra)[:most]

    def rows(self, reference: str, loss_pt: float) -> Iterator[Row]:
        """Every method against one reference at one allowed loss."""
        loss = loss_pt / 100
        target = self._accuracy(self.selection, reference) - loss
        for name, choices in self.candidates.items():
            choice = cheapest(choices, target)
            yield Row(name, choice or single(reference))
        yield self._ours(reference, loss)
        yield Row("oracle", oracle(self._accuracy(self.report, reference) - loss))

    def _ours(self, reference: str, loss: float) -> Row:
        """Certified where that saves something; else the cheapest that is safe on everything but the report split."""
        own_cost = self.chosen_costs.mean()[reference]
        if loss > 0:
            last: int | None = None
            for step, answer in enumerate(self.walked):
                observed = Observed.of(answer, self.certification, reference, "excess")
                if observed.rate > loss or observed.p_value(loss) > DELTA:
                    break
                last = step
            if last is not None and self.both[last][0] < own_cost:
                return Row("coe", self.both[last][2], certified=True)
        return Row("coe", self._safe(reference, loss) or single(reference))

    def _safe(self, reference: str, loss: float) -> Choice | None:
        """The cheapest of our front that is, with 95% confidence by the normal approximation, no worse than what is asked for.

        The best of very many configurations looks better than it is, so the point estimate alone would be too bold.
        """
        yardstick = self.chosen.answers[:, self.chosen.members.index(reference)] == self.chosen.labels
        allowed = []
        for (cost, _, choice), right in zip(self.both, self.right, strict=True):
            gain = right.astype(float) - yardstick
            if gain.mean() + loss >= MARGIN * gain.std() / np.sqrt(len(gain)):
                allowed.append((cost, choice))
        own_cost = self.chosen_costs.mean()[reference]
        cost, choice = min(allowed, key=lambda e: e[0], default=(np.inf, None))
        return choice if cost < own_cost else None

    @staticmethod
    def _accuracy(table: PredictionTable, member: str) -> float:
        return float((table.answers[:, table.members.index(member)] == table.labels).mean())

    def results(self, references: list[str]) -> Iterator[dict[str, Any]]:
        """The lines of the JSON."""
        for reference in references:
            base: Outcome = single(reference).run(self.report, self.report_costs)
            for loss_pt in LOSSES_PT:
                rows = list(self.rows(reference, loss_pt))
                outcomes = {r.method: r.choice.run(self.report, self.report_costs) for r in rows}
                for row in rows:
                    right, cost, deferred = outcomes[row.method]
                    line: dict[str, Any] = {
                        "data": self.data.name,
                        "reference": reference,
                        "allowed_loss_pt": loss_pt,
                        "method": row.method,
                        "config": row.choice.config,
                        "n_report": len(self.report),
                        "accuracy_report": float(right.mean()),
                        "reference_accuracy_report": float(base[0].mean()),
                        "reach": float(deferred.mean()),
                        "cost_relative": float(cost.mean() / base[1].mean()),
                        "certified": row.certified,
                        "epsilon_pt": loss_pt if row.certified else None,
                        "delta": DELTA if row.certified else None,
                    }
                    if row.method not in ("coe", "oracle"):
                        beaten, accuracy, ratio = dearer_at_no_less(outcomes["coe"], outcomes[row.method])
                        line |= {"coe_beaten_share": beaten, "coe_accuracy_gain": accuracy, "coe_cost_ratio": ratio}
                    yield line


def printed(lines: list[dict[str, Any]], references: list[str]) -> None:
    """A table per reference: cost relative to it, and accuracy against it in points."""
    for reference in references:
        own = [line for line in lines if line["reference"] == reference]
        accuracy = own[0]["reference_accuracy_report"]
        print(f"\n{own[0]['data']}: against {reference} ({accuracy:.2%} of {own[0]['n_report']:,} report items)")
        print(f"  {'method':<20}" + "".join(f"{f'loss {loss:g} pt':>22}" for loss in LOSSES_PT))
        for method in dict.fromkeys(line["method"] for line in own):
            cells = []
            for line in (entry for entry in own if entry["method"] == method):
                gain = 100 * (line["accuracy_report"] - accuracy)
                mark = " cert" if line["certified"] else ""
                cells.append(f"{line['cost_relative']:.3f} ({gain:+.2f} pt){mark}")
            print(f"  {method:<20}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of recorded predictions")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--task", help="one of several data sets in the folder; by default all")
    parser.add_argument("--reference", action="append", help="compare with this member; repeat; by default all members")
    parser.add_argument("--member", action="append", default=[], help="keep only these members; repeat")
    parser.add_argument("--cost", default="", help="what prices a call; by default RTX 4090 seconds, or dollars")
    parser.add_argument("--seed", type=int, default=0, help="of the split of the items")
    asked = parser.parse_args()
    if not asked.data.is_dir():
        parser.error(f"--data {asked.data}: no such folder")
    lines: list[dict[str, Any]] = []
    for task in [asked.task] if asked.task else tasks_of(asked.data):
        data = loaded(asked.data, task, tuple(asked.member), asked.cost, asked.seed)
        for note in data.notes:
            told(f"{data.name}: {note}")
        bench = Bench(data)
        right = (data.table.answers == data.table.labels[:, None]).mean(axis=0)
        order = [data.table.members[i] for i in np.argsort(-right, kind="stable")]
        references = asked.reference or order
        unknown = [r for r in references if r not in order]
        if unknown:
            parser.error(f"--reference {unknown[0]} is not in the pool: {', '.join(order)}")
        told(f"{data.name}: {len(references)} references")
        own = list(bench.results(references))
        printed(own, references[:3] if asked.reference is None else references)
        best = bench.fronts["coe"]
        chosen = search_verdict(bench, references[0])
        print(f"  verdict: {chosen}  (searched: {best.method})")
        lines += own
    if asked.json:
        asked.json.write_text(json.dumps(lines, indent=1))


def search_verdict(bench: Bench, reference: str) -> str:
    """Does a cascade pay against the most accurate model, at no loss on everything but the report split?"""
    row = bench._ours(reference, 0.0)
    if "->" not in row.choice.config:
        return f"one model: {row.choice.config}; no cascade is as accurate and cheaper"
    _, cost, _ = row.choice.run(bench.report, bench.report_costs)
    base = single(reference).run(bench.report, bench.report_costs)
    return f"a cascade: {row.choice.config} at {cost.mean() / base[1].mean():.3f} of the cost of {reference}"


if __name__ == "__main__":
    main()
