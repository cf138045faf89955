"""Which member runs on which hardware: problem, solvers, explanations. Pure; only `milp` knows SciPy's solver."""
