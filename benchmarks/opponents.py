"""What a cascade of ours is compared with: each method chooses on the selection split, as its authors do, by point estimates.

Every function returns `Choice`s: what to do with the items of any table, and at what cost. All are judged by `judged`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from coe.cascade.evaluate import route
from coe.cost.calls import CallCosts
from coe.table import PredictionTable
from coe.types import Cascade, Tier

Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(items,) right, (items,) cost, (items,) share of tiers after the first reached: 0 or 1."""


@dataclass(frozen=True)
class Choice:
    """A configuration in words, and what it does on a table."""

    config: str
    run: Callable[[PredictionTable, CallCosts], Outcome]


def cascade_choice(cascade: Cascade) -> Choice:
    """A cascade of ours."""

    def run(table: PredictionTable, costs: CallCosts) -> Outcome:
        routed = route(cascade, table)
        cost = (costs.of(cascade.members, len(table)) * routed.asked).sum(axis=1)
        return routed.answer == table.labels, cost, routed.tier > 0

    return Choice(described(cascade), run)


def described(cascade: Cascade) -> str:
    """small+other [vote 2] -> large."""
    parts = []
    for tier in cascade.tiers:
        gate = "" if tier.always_answers else f" [{tier.rule} {tier.bar:.4g}]"
        carried = f" (+{tier.carry} carried)" if tier.carry else ""
        parts.append("+".join(tier.members) + gate + carried + (" staged" if tier.dispatch == "staged" else ""))
    return " -> ".join(parts)


def single(member: str) -> Choice:
    """One model."""
    return cascade_choice(Cascade(name="single", tiers=(Tier(members=(member,)),)))


def cheapest(choices: Iterable[tuple[float, float, Choice]], target: float) -> Choice | None:
    """The cheapest of (cost, accuracy, choice) on the selection split with at least the target accuracy."""
    allowed = [(cost, -accuracy, n, choice) for n, (cost, accuracy, choice) in enumerate(choices) if accuracy >= target]
    return min(allowed, default=(0.0, 0.0, 0, None), key=lambda a: a[:3])[3]


def on_grid(table: PredictionTable, costs: CallCosts, thresholds: Sequence[float]) -> list[tuple[float, float, Choice]]:
    """All ordered pairs of single models at given thresholds of the maximum probability: cost, accuracy, choice.

    The selection rule of scikit-fallback's ThresholdCascadeClassifierCV for estimators that need no fitting: the mean of its
    folds is the mean over all items. Its default grid is ten thresholds from 1/classes to 0.95.
    """
    assert table.probs is not None
    right = table.answers == table.labels[:, None]
    sure = table.probs.max(axis=2)
    cost = costs.of(table.members, len(table))
    found = []
    for i, first in enumerate(table.members):
        for j, last in enumerate(table.members):
            if i == j or cost[:, j].mean() < cost[:, i].mean():
                continue
            for threshold in thresholds:
                stays = sure[:, i] >= threshold
                accuracy = float(np.where(stays, right[:, i], right[:, j]).mean())
                mean = float((cost[:, i] + ~stays * cost[:, j]).mean())
                if 0 < threshold <= 1:
                    tiers = (Tier(members=(first,), rule="score", threshold=float(threshold)), Tier(members=(last,)))
                    cascade = Cascade(name="pair", tiers=tiers, top_k=table.top_k)
                    found.append((mean, accuracy, cascade_choice(cascade)))
    return found


# --- Gates and scorers that are learned -------------------------------------------------------------------------------


def features(table: PredictionTable, first: str, heard: Sequence[str] = ()) -> np.ndarray:
    """(items, columns): what is known when `first` has answered after `heard`: probabilities, tokens, agreement, the answer."""
    column = table.members.index(first)
    parts = []
    if table.probs is not None:
        p = table.probs[:, column].astype(np.float64)
        p = np.sort(p, axis=1)[:, ::-1][:, :5]
        parts += [np.log(np.maximum(p, 1e-6)), -(p * np.log(np.maximum(p, 1e-6))).sum(axis=1, keepdims=True)]
        parts.append(p[:, :1] - (p[:, 1:2] if p.shape[1] > 1 else 0))
    if table.tokens is not None:
        parts += [np.log1p(table.tokens[:, column].astype(np.float64))]
    answer = table.answers[:, column]
    parts.append((answer < 0)[:, None].astype(np.float64))
    if len(table.classes) <= 30:
        parts.append((answer[:, None] == np.arange(len(table.classes))[None, :]).astype(np.float64))
    for other in heard:
        parts.append((answer == table.answers[:, table.members.index(other)])[:, None].astype(np.float64))
    return np.hstack(parts)


def gate(kind: str, seed: int = 0) -> object:
    """A small classifier: ``logistic`` or ``network``."""
    if kind == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    return make_pipeline(
        StandardScaler(), MLPClassifier((16,), early_stopping=True, max_iter=60, batch_size=256, random_state=seed)
    )


def halves(table: PredictionTable, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Masks of two random halves: one to train on, one to sweep thresholds on."""
    first = np.random.default_rng(seed).permutation(len(table)) < len(table) // 2
    return first, ~first


def neural_pairs(
    table: PredictionTable, costs: CallCosts, firsts: Sequence[str], lasts: Sequence[str]
) -> list[tuple[float, float, Choice]]:
    """IDK cascades with a neural gate (Wang et al. 2018): cross-entropy on "the fast model is right", threshold swept."""
    train, sweep = halves(table)
    found = []
    for first in firsts:
        right = table.answers[:, table.members.index(first)] == table.labels
        if len(np.unique(right[train])) < 2:
            continue
        model = gate("network").fit(features(table, first)[train], right[train])  # type: ignore[attr-defined]
        score = model.predict_proba(features(table, first))[:, 1]
        for last in lasts:
            if last == first:
                continue
            other = table.answers[:, table.members.index(last)] == table.labels
            cost = costs.of((first, last), len(table))
            for threshold in np.unique(np.quantile(score[sweep], np.linspace(0.02, 0.98, 49))):
                stays = score >= threshold
                accuracy = float(np.where(stays, right, other)[sweep].mean())
                mean = float((cost[:, 0] + ~stays * cost[:, 1])[sweep].mean())
                found.append((mean, accuracy, _list_choice((first, last), (model,), (float(threshold),))))
    return found


def scored_lists(
    table: PredictionTable, costs: CallCosts, pool: Sequence[str], grid: int = 12
) -> list[tuple[float, float, Choice]]:
    """FrugalGPT-style lists of two and three models (Chen et al. 2023): a scorer per position, thresholds on a grid.

    Its DistilBERT scorer reads texts; this one is a logistic regression on the features above, agreement with the models
    asked before included. Every call is billed.
    """
    train, sweep = halves(table)
    right = {m: table.answers[:, table.members.index(m)] == table.labels for m in pool}
    cost = dict(zip(pool, costs.of(pool, len(table)).T, strict=True))
    scores: dict[tuple[str, ...], tuple[object, np.ndarray] | None] = {}

    def scored(heard: tuple[str, ...], member: str) -> tuple[object, np.ndarray] | None:
        key = (*heard, member)
        if key not in scores:
            x, y = features(table, member, heard), right[member]
            scores[key] = None
            if len(np.unique(y[train])) == 2:
                model = gate("logistic").fit(x[train], y[train])  # type: ignore[attr-defined]
                scores[key] = (model, model.predict_proba(x)[:, 1])
        return scores[key]

    found = []
    by_cost = sorted(pool, key=lambda m: cost[m].mean())
    for i, a in enumerate(by_cost):
        one = scored((), a)
        if one is None:
            continue
        cuts_a = np.unique(np.quantile(one[1][sweep], np.linspace(0.05, 0.95, grid)))
        for j in range(i + 1, len(by_cost)):
            b = by_cost[j]
            for t in cuts_a:
                stays = one[1] >= t
                accuracy = float(np.where(stays, right[a], right[b])[sweep].mean())
                mean = float((cost[a] + ~stays * cost[b])[sweep].mean())
                found.append((mean, accuracy, _list_choice((a, b), (one[0],), (float(t),))))
            two = scored((a,), b)
            if two is None:
                continue
            cuts_b = np.unique(np.quantile(two[1][sweep], np.linspace(0.05, 0.95, grid)))
            for k in range(j + 1, len(by_cost)):
                c = by_cost[k]
                for t in cuts_a:
                    stays = one[1] >= t
                    for u in cuts_b:
                        second = two[1] >= u
                        ok = np.where(stays, right[a], np.where(second, right[b], right[c]))[sweep].mean()
                        mean = float((cost[a] + ~stays * (cost[b] + ~second * cost[c]))[sweep].mean())
                        found.append((mean, float(ok), _list_choice((a, b, c), (one[0], two[0]), (float(t), float(u)))))
    return found


def _list_choice(members: tuple[str, ...], scorers: tuple[object, ...], thresholds: tuple[float, ...]) -> Choice:
    """Ask one after the other; stop where the scorer's probability of being right reaches the threshold."""

    def run(table: PredictionTable, costs: CallCosts) -> Outcome:
        n = len(table)
        cost, right, waiting = np.zeros(n), np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
        each = costs.of(members, n)
        past = np.zeros(n, dtype=bool)
        for at, member in enumerate(members):
            cost += np.where(waiting, each[:, at], 0.0)
            past |= waiting & (at > 0)
            own = table.answers[:, table.members.index(member)] == table.labels
            if at < len(scorers):
                x = features(table, member, members[:at])
                stays = scorers[at].predict_proba(x)[:, 1] >= thresholds[at]  # type: ignore[attr-defined]
            else:
                stays = np.ones(n, dtype=bool)
            ends = waiting & stays
            right[ends] = own[ends]
            waiting &= ~stays
        return right, cost, past

    gates = [f"{m} [scorer {t:.3g}]" for m, t in zip(members, thresholds, strict=False)]
    return Choice(" -> ".join([*gates, members[-1]]), run)


def oracle(target: float) -> Choice:
    """Somebody who always knows the cheapest model that is right, and pays for right answers only until `target` is met.

    Per item: the cheapest model at all, or the cheapest that is right; taking the cheapest steps first is exact, since every
    step gains one right answer.
    """

    def run(table: PredictionTable, costs: CallCosts) -> Outcome:
        cost = costs.of(table.members, len(table))
        right = table.answers == table.labels[:, None]
        least = cost.min(axis=1)
        free = (right & (cost <= least[:, None])).any(axis=1)
        cheapest_right = np.where(right, cost, np.inf).min(axis=1)
        step = np.where(free | ~np.isfinite(cheapest_right), np.inf, cheapest_right - least)
        wanted = max(0, int(np.ceil(target * len(table) - 1e-9)) - int(free.sum()))
        order = np.argsort(step, kind="stable")[:wanted]
        order = order[np.isfinite(step[order])]
        paid = np.zeros(len(table), dtype=bool)
        paid[order] = True
        return free | paid, np.where(paid, cheapest_right, least), paid

    return Choice("the cheapest model that is right", run)


# --- Judging ----------------------------------------------------------------------------------------------------------


def dearer_at_no_less(
    ours: Outcome, theirs: Outcome, rounds: int = 1000, seed: int = 0
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Paired bootstrap over items: how often theirs is cheaper and at least as accurate; 95% intervals of the accuracy
    difference (ours - theirs) and of the cost ratio (ours / theirs).
    """
    rng = np.random.default_rng(seed)
    n = len(ours[0])
    gain, own, other = ours[0].astype(float) - theirs[0], ours[1], theirs[1]
    accuracy, ratio = np.empty(rounds), np.empty(rounds)
    for r in range(rounds):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)
        accuracy[r] = (weight * gain).sum() / n
        ratio[r] = (weight * own).sum() / max((weight * other).sum(), 1e-300)
    beaten = float(((accuracy <= 0) & (ratio > 1)).mean())
    return beaten, _interval(accuracy), _interval(ratio)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
