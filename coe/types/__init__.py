"""The nouns, in the order of a query's story: who can answer, what they said, who is asked, what it costs, what is promised,
what is rented.

Everything is frozen and checked on construction, and a unit stands in the name of every field that has one; a bare
number is a count or a fraction. What is read from files is a pydantic model that forbids unknown keys. What members
said, in arrays, is in `coe.table`; what happened in service is in `coe.records`. Nothing here reads a file, a clock or a
random number.
"""

from coe.types.access import (
    Access,
    BearerToken,
    BearerTokens,
)
from coe.types.auditing import (
    Audits,
)
from coe.types.base import (
    ABSTAINED,
    MISSING_VOTE,
    BoolArray,
    Classes,
    Count,
    Day,
    FloatArray,
    Fraction,
    IntArray,
    Name,
    NotNegative,
    Noun,
    OpenFraction,
    Positive,
    PositiveCount,
    Probabilities,
    Tokens,
)
from coe.types.cascades import (
    FRACTION_RULES,
    Cascade,
    CascadeStats,
    Certificate,
    Claim,
    Tier,
)
from coe.types.fronts import (
    Costs,
    Front,
    FrontPoint,
    TokenPrice,
)
from coe.types.hardware import (
    ApiPrice,
    BatchTiming,
    Fleet,
    FleetNode,
    Offer,
    Prices,
    Profile,
    Profiles,
    TokenRate,
)
from coe.types.plans import (
    Baseline,
    CostLine,
    Gear,
    Gears,
    LoadPoint,
    Placement,
    Plan,
    PlannedNodes,
    PredictedCost,
    RouterPlacement,
    Sensitivity,
    SolverReport,
)
from coe.types.pool import (
    Member,
    Pool,
)
from coe.types.scenarios import (
    Failures,
    Loss,
    Scaling,
    Scenario,
)
from coe.types.watching import (
    LedgerLimits,
    Tracing,
)
from coe.types.workloads import (
    SURVIVING_UTILISATION,
    Link,
    Sites,
    TokenLengths,
    Workload,
)

__all__ = [
    "ABSTAINED",
    "FRACTION_RULES",
    "MISSING_VOTE",
    "SURVIVING_UTILISATION",
    "Access",
    "ApiPrice",
    "Audits",
    "Baseline",
    "BatchTiming",
    "BearerToken",
    "BearerTokens",
    "BoolArray",
    "Cascade",
    "CascadeStats",
    "Certificate",
    "Claim",
    "Classes",
    "CostLine",
    "Costs",
    "Count",
    "Day",
    "Failures",
    "Fleet",
    "FleetNode",
    "FloatArray",
    "Fraction",
    "Front",
    "FrontPoint",
    "Gear",
    "Gears",
    "IntArray",
    "LedgerLimits",
    "Link",
    "LoadPoint",
    "Loss",
    "Member",
    "Name",
    "NotNegative",
    "Noun",
    "Offer",
    "OpenFraction",
    "Placement",
    "Plan",
    "PlannedNodes",
    "Pool",
    "Positive",
    "PositiveCount",
    "PredictedCost",
    "Prices",
    "Probabilities",
    "Profile",
    "Profiles",
    "RouterPlacement",
    "Scaling",
    "Scenario",
    "Sensitivity",
    "Sites",
    "SolverReport",
    "Tier",
    "TokenLengths",
    "TokenPrice",
    "TokenRate",
    "Tokens",
    "Tracing",
    "Workload",
]
