"""The arrows of DESIGN.md: who may import whom, and that the pure half runs without Ray and torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "coe"

DATA = {"coe", "coe.types", "coe.table", "coe.records", "coe.errors", "coe.files", "coe.plugins"}
PURE = {
    "coe.cascade",
    "coe.cost",
    "coe.fleet",
    "coe.prices",
    "coe.placement",
    "coe.report",
    "coe.router",
    "coe.simulator",
}
EDGES_INSIDE = ("coe.prices.sources",)
"""Packages within the pure half that read files."""
HEAVY = {
    "ray": ("coe/serving/", "deployments/"),
    "torch": ("coe/runners/torch_runner.py", "coe/serving/profile.py", "coe/learned/", "coe/freeze/", "deployments/"),
    "safetensors": ("coe/runners/torch_runner.py", "coe/learned/", "coe/freeze/", "deployments/"),
    "matplotlib": (
        "coe/report/drawing.py",
        "coe/report/plots.py",
        "coe/report/front_plot.py",
        "coe/report/plan_plot.py",
        "coe/freeze/",
    ),
    "fastapi": ("coe/serving/",),
    "opentelemetry": ("coe/serving/",),
    "httpx": ("coe/bench.py", "coe/runners/openai_runner.py", "deployments/"),
    "scipy.optimize": ("coe/placement/milp.py", "coe/cascade/temperature.py", "coe/cost/roofline.py"),
    "typer": ("coe/cli/",),
}
"""Package -> the only places that may import it."""

WORLD = {"time", "os", "random", "socket", "subprocess", "threading", "asyncio", "tempfile", "shutil", "logging"}
"""What a function of its arguments has no use for."""
ASYNCHRONOUS = ("coe/router/", "coe/simulator/")
"""The router waits for its members in asyncio; on the simulator's loop, whose clock is virtual, that too is a function."""


def sources() -> list[Path]:
    return sorted(p for folder in (PACKAGE, ROOT / "deployments") for p in folder.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, also inside functions, but not for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def layer(module: str) -> str:
    """data, pure or edge."""
    if module.startswith(EDGES_INSIDE):
        return "edge"
    if module in DATA or ".".join(module.split(".")[:2]) in DATA:
        return "data"
    return "pure" if ".".join(module.split(".")[:2]) in PURE else "edge"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_arrows_point_down(path: Path) -> None:
    allowed = {"data": {"data"}, "pure": {"data", "pure"}, "edge": {"data", "pure", "edge"}}[layer(module_of(path))]
    wrong = {m for m in imports(path) if m.split(".")[0] == "coe" and layer(m) not in allowed}
    assert not wrong, f"{module_of(path)} is {layer(module_of(path))} and must not import {wrong}"


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for package, places in HEAVY.items():
        uses = any(m == package or m.startswith(package + ".") for m in imports(path))
        assert not uses or place.startswith(places), f"{place} imports {package}; only {places} may"


@pytest.mark.parametrize("path", [p for p in sources() if layer(module_of(p)) == "pure"], ids=module_of)
def test_the_pure_half_knows_no_world(path: Path) -> None:
    touched = {m.split(".")[0] for m in imports(path)} & WORLD
    if str(path.relative_to(ROOT)).startswith(ASYNCHRONOUS):
        touched -= {"asyncio"}
    assert not touched, f"{module_of(path)} imports {touched}"
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    names = {getattr(n.func, "id", "") for n in calls}
    assert not names & {"print", "open", "input"}


def test_the_pure_half_imports_without_ray_and_torch() -> None:
    modules = [module_of(p) for p in sources() if layer(module_of(p)) in ("data", "pure")]
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'torch', 'fastapi', 'typer', 'httpx'):\n"
        "            raise ImportError(name + ' is not there')\n"
        "sys.meta_path.insert(0, Refuse())\n" + "\n".join(f"import {m}" for m in modules) + "\nprint(len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(modules) > 20


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    script = (
        "import sys, coe.cli.main; print(*(m for m in ('ray', 'torch', 'scipy', 'matplotlib') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
