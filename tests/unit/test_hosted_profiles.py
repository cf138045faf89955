"""What timing hosted models costs: said before, agreed to, kept to, and never sent from every node type."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from coe import files
from coe.cli.main import run
from coe.errors import InvalidInput
from coe.placement.candidates import hosted_model
from coe.profiler.hosted import BATCH_SIZES
from coe.profiler.quote import BYTES_PER_TOKEN, quotes, refuse_unlisted, runs_within
from coe.runners.base import RUNNERS, Said
from coe.types import ApiPrice, Fleet, FleetNode, Member, Pool, Prices, Profiles
from tests import factories

TEXTS = np.array([["x" * 30], ["y" * 60]])
PROMPT_TOKENS, COMPLETION_TOKENS = 10, 5
USD_PER_CALL = (PROMPT_TOKENS * 2.0 + COMPLETION_TOKENS * 8.0) / 1e6


def api(model: str, **changes: Any) -> ApiPrice:
    fields = {"usd_per_million_prompt_tokens": 2.0, "usd_per_million_completion_tokens": 8.0, **changes}
    return ApiPrice(model=model, provider="p", source="tests", date=factories.DAY, **fields)


def member(name: str, **options: Any) -> Member:
    given = {"base_url": "https://llm.test/v1", "model": name, "max_tokens": 100, **options}
    return Member(name=name, runner="openai", options=given)


def pool(*members: Member) -> Pool:
    return Pool(classes=("a", "b"), input_shape=(1,), input_dtype="text", members=members)


class Endpoint:
    """Counts what it is asked instead of asking; answers everything."""

    asked: ClassVar[dict[str, int]] = {}

    def __init__(self, member: Member, *_: Any) -> None:
        self.name = member.name

    def load(self) -> None: ...

    def close(self) -> None: ...

    def memory_gib(self) -> float:
        return 0.0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return self.ask(batch).probs

    def ask(self, batch: np.ndarray) -> Said:
        self.asked[self.name] = self.asked.get(self.name, 0) + len(batch)
        probs = np.eye(2, dtype=np.float32)[[0] * len(batch)]
        return Said(probs, np.tile(np.array([PROMPT_TOKENS, COMPLETION_TOKENS], dtype=np.int32), (len(batch), 1)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Member -> requests that were sent."""
    monkeypatch.setitem(RUNNERS, "openai", Endpoint)
    monkeypatch.setattr(Endpoint, "asked", {})
    return Endpoint.asked


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A pool of two hosted models, their prices, items; a fleet file, which sells none."""
    files.write(tmp_path / "pool.yaml", pool(member("one"), member("two")))
    files.write(tmp_path / "prices.yaml", Prices(apis=(api("one"), api("two"))))
    node = FleetNode(offer=factories.offer(), count=1, cpu_share=1.0)
    files.write(tmp_path / "fleet.yaml", Fleet(name="f", nodes=(node,)))
    np.savez(
        tmp_path / "data.npz", x=TEXTS, y=np.array([0, 1]), items=np.array([1, 2]), splits=np.array(["train", "test"])
    )
    return tmp_path


def profile(work: Path, *options: str, prices: str = "prices.yaml", data: bool = True) -> int:
    given = ["--data", str(work / "data.npz")] if data else []
    return run(
        [
            "profile",
            str(work / "pool.yaml"),
            "--prices",
            str(work / prices),
            *given,
            *options,
            "-o",
            str(work / "profiles.yaml"),
        ]
    )


def test_nothing_is_sent_before_the_price_is_agreed_to(
    work: Path, asked: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(work) == 2
    said = capsys.readouterr().err
    assert "one: 186 requests to one, about $" in said
    assert "agree with --yes, or with --max-usd and an amount" in said
    assert not asked
    assert profile(work, "--yes") == 0
    assert asked == {"one": 186, "two": 186}  # once each, and no cluster was needed
    found = files.read(work / "profiles.yaml", Profiles).profiles
    assert [(p.member, p.accelerator) for p in found] == [("one", "API"), ("two", "API")]
    assert not (work / "profiles.partial.yaml").exists()


def test_the_limit_holds_before_and_while_requests_are_sent(
    work: Path, asked: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(work, "--max-usd", "0.001") == 2
    assert "--max-usd: is less than the requests about cost" in capsys.readouterr().err
    assert not asked
    files.write(work / "pool.yaml", pool(member("one", max_tokens=1), member("two", max_tokens=1)))  # guessed too low
    quoted = sum(q.usd for q in quotes(files.read(work / "pool.yaml", Pool), work, prices(work), TEXTS, BATCH_SIZES, 5))
    limit = 1.5 * 186 * USD_PER_CALL
    assert quoted < limit < 2 * 186 * USD_PER_CALL
    assert profile(work, "--max-usd", f"{limit:.6f}") == 1
    assert "member 'two': stopped at $" in capsys.readouterr().err
    assert asked["one"] == 186
    assert asked["two"] * USD_PER_CALL <= limit - 186 * USD_PER_CALL + max(BATCH_SIZES) * USD_PER_CALL
    asked.clear()
    assert profile(work, "--yes", "--resume") == 0  # what was paid for is not asked again
    assert asked == {"two": 186}


def prices(work: Path) -> Prices:
    return files.read_prices(work / "prices.yaml")


def test_models_without_a_price_are_refused_with_the_file_that_should_have_it(
    work: Path, asked: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(work, "--yes", prices="fleet.yaml") == 2
    said = capsys.readouterr().err
    assert "pool: members[0] 'one': options.model: is not among the apis of" in said
    assert f"list it in {work / 'fleet.yaml'} under apis" in said
    assert "members[1] 'two'" in said
    assert not asked


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1"])
def test_a_server_on_the_node_itself_is_timed_where_it_runs(url: str) -> None:
    own = member("own", base_url=url)
    refuse_unlisted(pool(own), factories.prices(), "fleet.yaml")
    assert hosted_model(own, factories.prices()) is None  # so it is profiled like any member


@pytest.mark.parametrize("url", ["http://10.0.0.4:8000/v1", "https://localhost.evil.test/v1"])
def test_a_server_elsewhere_is_not_taken_for_one_of_the_node(url: str) -> None:
    with pytest.raises(InvalidInput, match="every node type would send it requests"):
        refuse_unlisted(pool(member("own", base_url=url)), factories.prices(), "fleet.yaml")


def test_free_models_need_no_word(work: Path, asked: dict[str, int]) -> None:
    free = {"usd_per_million_prompt_tokens": 0.0, "usd_per_million_completion_tokens": 0.0}
    files.write(work / "prices.yaml", Prices(apis=(api("one", **free), api("two", **free))))
    assert profile(work, "--requests", "130") == 0
    assert asked == {"one": 124, "two": 124}


def test_too_few_requests_and_no_items_are_refused(
    work: Path, asked: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(work, "--yes", "--requests", "100") == 2
    assert "--requests: must be at least 124" in capsys.readouterr().err
    assert profile(work, "--yes", data=False) == 2
    assert "--data: is needed: one, two are hosted" in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize("requests", [124, 155, 200, 651])
def test_no_more_requests_are_sent_than_were_allowed(requests: int) -> None:
    sent = (runs_within(requests, BATCH_SIZES) + 1) * sum(BATCH_SIZES)
    assert requests - sum(BATCH_SIZES) < sent <= requests


def test_a_quote_counts_the_prompts_and_the_longest_replies(tmp_path: Path) -> None:
    asking = pool(member("one", prompt="{item}!", system="abc"), member("two", max_tokens=None))
    options = {**asking.members[1].options}
    del options["max_tokens"]
    asking = asking.model_copy(
        update={"members": (asking.members[0], asking.members[1].model_copy(update={"options": options}))}
    )
    one, two = quotes(asking, tmp_path, Prices(apis=(api("one", usd_per_call=0.01), api("two"))), TEXTS, (1, 2), 3)
    assert one.requests == 12
    assert one.prompt_tokens == pytest.approx((45 + 1 + 3) / BYTES_PER_TOKEN)
    assert one.usd == pytest.approx(12 * (one.prompt_tokens * 2e-6 + 100 * 8e-6 + 0.01))
    assert two.completion_tokens == 1000
    assert "assumed, since the member sets no max_tokens" in str(two)


def test_a_price_by_the_token_that_nobody_counts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="priced by the token, and the endpoint does not count them"):
        quotes(pool(member("one", count_tokens=False)), tmp_path, Prices(apis=(api("one"),)), TEXTS, (1,), 3)
