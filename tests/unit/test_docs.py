"""The guide is true: its Python runs, its links lead somewhere, its verbs exist."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import typer

from coe.cli.main import app

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT.glob("*.md")), *(ROOT / "deployments").rglob("*.md")])


@pytest.mark.parametrize("page", [p for p in PAGES if ">>> " in p.read_text(encoding="utf-8")], ids=lambda p: p.name)
def test_python_lines_give_what_is_printed_below_them(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)", text):
        there = page if not target else (page.parent / target)
        assert there.exists(), f"{page.name} links to {target}"
        if anchor and there.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor[1:] in slugs, f"{page.name} links to {target}{anchor}"


def test_every_page_of_the_guide_is_in_its_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md" and f"({p.name})" not in index]
    assert not missing


# --- Commands ---------------------------------------------------------------------------------------------------------

COMMANDS = sorted({*PAGES, *(ROOT / "coe" / "cli" / "starter").glob("*.md"), *(ROOT / "cluster_configs").glob("*.md")})


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every command: lines of blocks, continued ones joined, and what stands between backticks in the text."""
    blocks = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)]:
        for part in re.split(r"&&|\|\||[;|]|\$\(", line):
            words = part.split("#")[0].replace('"', " ").replace("'", " ").split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield words


@pytest.mark.parametrize("page", COMMANDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_verbs_options_and_modules_of_shown_commands_exist(page: Path) -> None:
    wrong = []
    for words in command_lines(page.read_text(encoding="utf-8")):
        if words[0] == "coe" and len(words) > 1 and not words[1].endswith(":"):  # but for what a command prints
            wrong += [f"{' '.join(words)}: {what}" for what in unknown(words[1:])]
        if words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("benchmarks", "deployments", "coe"):
            place = ROOT / words[2].replace(".", "/")
            if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists()):
                wrong.append(f"{words[2]}: no such module")
    assert not wrong


@lru_cache
def program() -> Any:
    """The command line as click sees it."""
    return typer.main.get_command(app)


def unknown(words: list[str]) -> list[str]:
    """What of a command `coe` does not know."""
    command = program()
    names = list(words)
    while hasattr(command, "commands") and names and not names[0].startswith("-"):
        name = names.pop(0)
        if re.fullmatch(r"[A-Z_.{}…]+", name):
            return []  # a verb of the reader's choice
        for one in name.split("|"):
            if one not in command.commands:
                return [f"no verb {one}"]
        command = command.commands[name.split("|")[0]]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    given = [re.split(r"[=,.)\]]", w)[0] for w in names if re.match(r"--?[a-zA-Z]", w)]
    return [f"no option {option}" for option in given if option not in known]


def test_the_check_of_commands_finds_what_is_wrong() -> None:
    lines = [
        "```sh",
        "coe plan x.yaml --rats 1 \\",
        "  --pool p.yaml",
        "coe plann",
        "coe cluster up f.yaml --stat .",
        "```",
        "see `coe diff a b --formt json`",
    ]
    found = [
        what for words in command_lines("\n".join(lines) + "\n") for what in unknown(words[1:]) if words[0] == "coe"
    ]
    assert found == ["no option --rats", "no verb plann", "no option --stat", "no option --formt"]


def test_a_stranger_gets_a_certified_cascade_from_the_readmes_recorded_predictions(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From recorded predictions alone")[2]
    block = section.partition("```sh\n")[2].partition("```")[0]
    here = f'set -e\ncoe() {{ "{sys.executable}" -c "from coe.cli.main import main; main()" "$@"; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", here + block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "less than the best single model, large" in done.stdout
    assert "certified at most 1.00% below large with 95% confidence" in done.stderr
    assert {"front.json", "front.svg", "cascade.calibrated.yaml"} <= {p.name for p in tmp_path.iterdir()}
