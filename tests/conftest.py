"""What all tests share: golden files, renewed with `pytest --golden-renew`, and patience on a slow machine."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

GOLDEN = Path(__file__).parent / "golden"

# a busy machine may pause a test for longer than any deadline; the same examples everywhere, so that no run is unlucky
hypothesis.settings.register_profile("coe", deadline=None, derandomize=True)
hypothesis.settings.load_profile("coe")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--golden-renew` writes what the tests produce; read the difference before keeping it."""
    parser.addoption("--golden-renew", action="store_true", help="write the golden files anew instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` fails with a diff unless `tests/golden/<name>` holds exactly `text`."""
    renew = bool(request.config.getoption("--golden-renew"))

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if renew:
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{path} is missing; run: pytest --golden-renew {request.node.nodeid}", pytrace=False)
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(expected.splitlines(), text.splitlines(), name, "now", lineterm="")
            renewal = f"if the change is meant: pytest --golden-renew {request.node.nodeid}"
            pytest.fail("\n".join((*lines, "", renewal)), pytrace=False)

    return check
