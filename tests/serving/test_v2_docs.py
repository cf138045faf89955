"""The commands of docs/protocols.md run as printed, and print what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coe import files
from coe.types import Access
from tests.serving.web_case import served

DOC = (Path(__file__).parent.parent.parent / "docs/protocols.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOC, flags=re.DOTALL)


def test_the_commands_print_what_stands_below_them(tmp_path: Path) -> None:
    commands = [text for kind, text in BLOCKS if kind == "sh"]
    told: list[str] = []
    with served() as service:
        script = ("echo '---'\n").join(commands).replace("http://127.0.0.1:8000", service.url)
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env={"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    told = done.stdout.split("---\n")
    shown = [
        (number, json.loads(then[1]))
        for number, (block, then) in enumerate(zip(BLOCKS, BLOCKS[1:], strict=False))
        if block[0] == "sh" and then[0] == "json"
    ]
    at = {number: sum(kind == "sh" for kind, _ in BLOCKS[:number]) for number, _ in shown}
    assert len(shown) == 2
    for number, expected in shown:
        assert json.loads(told[at[number]]) == expected
    v2 = told[2]
    assert '"platform":"coe_cascade"' in v2
    assert '{"name":"label","datatype":"BYTES","shape":[1],"data":["class-1"]}' in v2
    assert '"data":["class-1"]' in told[3], "the binary request is the same item"


def test_the_access_file_shows_the_defaults(tmp_path: Path) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    (tmp_path / "access.yaml").write_text(text)
    shown = files.read(tmp_path / "access.yaml", Access)
    assert shown == Access(tokens="tokens.yaml", requests_per_s=50)
    assert set(shown.model_dump()) == set(re.findall(r"^(\w+):", text, flags=re.MULTILINE))


def test_the_access_log_has_the_keys_that_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from coe.serving.door import Visit, _line

    line = json.loads(_line({"method": "GET", "path": "/plan"}, Visit("r", "anna"), 200, 0.1))
    shown = [json.loads(text) for kind, text in BLOCKS if kind == "json" and "request_id" in text]
    assert [list(entry) for entry in shown] == [list(line)]
    assert capsys.readouterr().out == ""
