"""Lengths of requests: counted into classes that are never shorter than the requests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe import files
from coe.cli.main import run
from coe.cost.lengths import length_classes
from coe.errors import InvalidInput
from coe.types import Workload
from tests import factories

DATA = Path(os.environ.get("COE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@given(st.lists(st.tuples(st.integers(0, 262144), st.integers(0, 16384)), min_size=1, max_size=60))
def test_classes_cover_every_request_and_add_up(requests: list[tuple[int, int]]) -> None:
    prompt, completion = (np.array(column, dtype=np.int64) for column in zip(*requests, strict=True))
    classes = length_classes(prompt, completion)
    assert sum(c.share for c in classes) == pytest.approx(1)
    for p, c in requests:
        assert any(k.prompt_tokens >= p and k.completion_tokens >= c for k in classes)
    mean = sum(c.share * c.prompt_tokens for c in classes)
    assert mean >= prompt.mean()


@pytest.mark.parametrize(
    ("prompt", "completion", "message"),
    [([], [], "there is none"), ([-1], [1], "counts from 0"), ([10], [99999], "give larger edges")],
)
def test_lengths_that_cannot_be(prompt: list[int], completion: list[int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        length_classes(np.array(prompt, dtype=np.int64), np.array(completion, dtype=np.int64))


def test_a_workload_gets_the_lengths_of_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, work = tmp_path / "trace.csv", tmp_path / "workload.yaml"
    trace.write_text("t_s,context_tokens,generated_tokens\n0,100,10\n1,200,12\n2,5000,300\n")
    files.write(work, factories.workload(), "")
    assert run(["import", "lengths", str(trace), "--workload", str(work)]) == 0
    assert [(c.prompt_tokens, c.completion_tokens) for c in files.read(work, Workload).tokens] == [
        (256, 16),
        (16384, 1024),
    ]
    assert run(["import", "lengths", str(trace)]) == 0
    assert "prompt_tokens: 256" in capsys.readouterr().out
    trace.write_text("t_s,context_tokens,generated_tokens\n0,1.5,10\n")
    assert run(["import", "lengths", str(trace)]) == 2
    assert "must be a whole number" in capsys.readouterr().err
    assert run(["import", "lengths", str(trace), "--prompt-column", "context_token"]) == 2


def test_the_azure_trace_has_the_published_medians() -> None:
    path = DATA / "trace_azure_llm" / "azure_llm_2023_conv_first60pct.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    assert run(["import", "lengths", str(path)]) == 0
