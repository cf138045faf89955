"""Deferral rules: from the outputs of a tier's members to an answer and a score for every item.

A rule is a function ``(Outputs) -> Scored``. To add one, write the function and a line in `RULES`, or name it in the
cascade file by dotted path (``rule: my_package.rules:entropy``). A rule with parameters of its own, such as a trained
gate, is made by a function in `MAKERS` from what follows the colon (``rule: gate:gates/small.safetensors``).
`coe.cascade.contract.check_rule` tests any rule.

Missing votes. `Scored.certain` says where the answer stands whatever the missing members would have said, and
`Scored.score` is then the lowest score that any completion could give, `Scored.highest` the highest; so comparing them with
the threshold never accepts on a vote that was not cast, and tells when a vote need not be asked for.

Ties. `vote` is black-box: among the classes with most votes, the one voted for by the earliest listed member wins (so
list the strongest member first). Rules that see probabilities give the tie to the class with the highest mean probability,
then to the lower class index, so the order in which members are listed does not matter to them.
"""

from __future__ import annotations

from collections.abc import Callable

from coe.cascade.agreement import both, mean, score, vote
from coe.cascade.disagreement import jensen_shannon, vote_entropy
from coe.cascade.scored import Rule, Scored
from coe.cascade.similarity import similarity
from coe.cascade.uncertainty import entropy, margin
from coe.plugins import import_path, resolve
from coe.types import Tier

__all__ = ["MAKERS", "RULES", "Rule", "Scored", "rule", "rule_of", "score", "vote"]

RULES: dict[str, Rule] = {
    "vote": vote,
    "score": score,
    "mean": mean,
    "both": both(1),
    "margin": margin,
    "entropy": entropy,
    "vote_entropy": vote_entropy,
    "jensen_shannon": jensen_shannon,
    "similarity": similarity,
}

MAKERS: dict[str, str] = {
    "gate": "coe.learned.gate_rule:load",
    "similarity": "coe.cascade.similarity:using",
}
"""Scheme -> dotted path, imported when first used, of a function from the rest of the name to a rule."""


def rule(name: str) -> Rule:
    """The rule called `name`, the one that a scheme of `MAKERS` makes, or the one at that dotted path."""
    scheme, colon, rest = name.partition(":")
    if colon and scheme in MAKERS:
        maker: Callable[[str], Rule] = import_path(MAKERS[scheme], "rule")
        return maker(rest)
    return resolve(name, RULES, "rule")


def rule_of(tier: Tier) -> Rule:
    """The rule by which `tier` scores, with its quorum where the rule takes quorum and threshold."""
    return both(tier.quorum or 1) if tier.rule == "both" else rule(tier.rule)
