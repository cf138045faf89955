"""The commands of docs/protocols.md run as printed, and print what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from coe import files
from coe.serving.door import Visit, log_line
from coe.types import Access
from tests.serving.web_case import served

DOC = (Path(__file__).parent.parent.parent / "docs/protocols.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOC, flags=re.DOTALL)


def test_the_commands_print_what_stands_below_them(tmp_path: Path) -> None:
    commands = [text for kind, text in BLOCKS if kind == "sh"]
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
    pairs = [(block, then) for block, then in pairwise(BLOCKS) if block[0] == "sh"]
    shown = [(told[at], json.loads(then[1])) for at, (_, then) in enumerate(pairs) if then[0] == "json"]
    assert len(shown) == 2
    for printed, expected in shown:
        assert json.loads(printed) == expected
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


def test_the_access_log_has_the_keys_that_are_shown() -> None:
    line = json.loads(log_line("GET", "/plan", Visit("r", "anna"), 200, 0.1))
    shown = [json.loads(text) for kind, text in BLOCKS if kind == "json" and "request_id" in text]
    assert [list(entry) for entry in shown] == [list(line)]
