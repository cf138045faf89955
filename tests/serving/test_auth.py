"""Tokens, rates, sizes and the access log, over HTTP and alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coe import files
from coe.bench import run_bench
from coe.cascade.evaluate import route
from coe.cli.main import run
from coe.errors import InvalidInput
from coe.profiler.predict import DataSet
from coe.serving.app import CascadeArgs
from coe.serving.auth import TokenList, hashed, new_token
from coe.serving.limits import CLIENTS_KEPT, Buckets, TooLarge, body_within
from coe.types import Access, BearerTokens
from tests.serving.web_case import NAME, TABLE, item, items, planned, served

OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
CLOSED = ("/plan", "/openapi.json", "/v2", f"/v2/models/{NAME}", f"/v2/models/{NAME}/ready", "/nowhere", "/healthz/")
BODY = {"items": [{"input": item(3)}]}
V2_BODY = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2, 2], "data": [item(3)]}]}


def write(path: Path, **tokens: str) -> Path:
    """A file of tokens: name -> token."""
    files.write(path, BearerTokens(tokens=tuple(hashed(name, token) for name, token in tokens.items())))
    return path


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- Tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_known_by_its_hash_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens.yaml", anna="secret-a", ben="secret-b")
    assert "secret" not in path.read_text()
    known = TokenList(path)
    assert known.owner("Bearer secret-a") == "anna"
    assert known.owner("bearer secret-b") == "ben"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic secret-a", "secret-a", "Bearer secret-A", "Bearer ä", "Bearer \udcff"],
)
def test_everything_else_is_nobodys(tmp_path: Path, header: str | None) -> None:
    assert TokenList(write(tmp_path / "tokens.yaml", anna="secret-a")).owner(header) is None


def test_the_hash_itself_lets_nobody_in(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"secret-a").hexdigest()
    assert TokenList(write(tmp_path / "tokens.yaml", anna="secret-a")).owner(f"Bearer {digest}") is None


def test_new_tokens_are_long_and_never_the_same() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert min(map(len, made)) >= 40


def test_tokens_rotate_and_a_broken_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "tokens.yaml", anna="old")
    known = TokenList(path)
    write(path, anna="old", newer="new")
    assert (known.owner("Bearer old"), known.owner("Bearer new")) == ("anna", "newer")
    write(path, newer="new")
    assert (known.owner("Bearer old"), known.owner("Bearer new")) == (None, "newer")
    with caplog.at_level(logging.ERROR):
        path.write_text("kind: tokens\nversion: 1\ntokens: [{name: a, sha256: short}]\n")
        assert known.owner("Bearer new") == "newer"
        path.unlink()
        assert known.owner("Bearer new") == "newer"
    assert [("stay valid" in r.message) for r in caplog.records] == [True, True]
    write(path, last="last")
    assert (known.owner("Bearer new"), known.owner("Bearer last")) == (None, "last")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: tokens\nversion: 1\ntokens: []\n", "needs at least 1 entries"),
        ("kind: tokens\nversion: 1\ntokens: [{name: a, sha256: AB}]\n", "must match"),
        ("kind: tokens\nversion: 1\ntokens: [{name: a, token: x}]\n", "is not a known key"),
        (f"kind: tokens\nversion: 1\ntokens: [{{name: a, sha256: {'0' * 64}}}]\n", "valid string"),
        (
            f"kind: tokens\nversion: 1\ntokens: [{{name: a, sha256: {'a' * 64}}}, {{name: b, sha256: {'a' * 64}}}]\n",
            "needs one owner",
        ),
    ],
)
def test_a_service_does_not_start_with_a_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokens.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=message), served(Access(tokens=str(tmp_path / "tokens.yaml"))):
        pass
    with pytest.raises(InvalidInput, match="does not exist"), served(Access(tokens=str(tmp_path / "none.yaml"))):
        pass


def test_the_command_line_makes_tokens_that_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.yaml"
    made = []
    for name in ("anna", "ben"):
        assert run(["token", "new", "--name", name, "--add", str(path)]) == 0
        made.append(capsys.readouterr().out.strip())
    known = TokenList(path)
    assert [known.owner(f"Bearer {token}") for token in made] == ["anna", "ben"]
    assert not [token for token in made if token in path.read_text()]
    assert run(["token", "new", "--name", "cleo"]) == 0
    token, line = capsys.readouterr().out.splitlines()
    path.write_text(f"kind: tokens\nversion: 1\ntokens:\n{line}\n")
    assert known.owner(f"Bearer {token}") == "cleo"
    assert run(["validate", str(path)]) == 0
    assert run(["token", "new", "--name", "two words"]) == 2
    assert "--name: " in capsys.readouterr().err


def test_build_writes_limits_and_where_the_tokens_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(tmp_path / "plan.yaml", planned())
    (tmp_path / "access.yaml").write_text("kind: access\nversion: 1\ntokens: tokens.yaml\nmax_items: 7\n")
    out = tmp_path / "serve.yaml"
    build = ["build", str(tmp_path / "plan.yaml"), "--uncertified", "--access", str(tmp_path / "access.yaml")]
    assert run([*build, "-o", str(out)]) == 0
    assert "is not on this machine" in capsys.readouterr().err
    args = CascadeArgs.model_validate(yaml.safe_load(out.read_text())["applications"][0]["args"])
    assert args.access == Access(tokens=str(tmp_path / "tokens.yaml"), max_items=7)
    (tmp_path / "tokens.yaml").write_text("kind: tokens\nversion: 1\ntokens: []\n")
    assert run([*build, "-o", str(out)]) == 2
    assert "needs at least 1 entries" in capsys.readouterr().err
    (tmp_path / "access.yaml").write_text("kind: access\nversion: 1\nmax_item: 7\n")
    assert run([*build, "-o", str(out)]) == 2
    assert "did you mean 'max_items'?" in capsys.readouterr().err


def test_over_http_only_health_is_open(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens.yaml", anna="secret-a")
    with served(Access(tokens=str(path))) as service, httpx.Client(base_url=service.url) as client:
        for open_path in OPEN:
            assert client.get(open_path).status_code == 200
        for closed in CLOSED:
            assert client.get(closed).status_code == 401, closed
        refused = client.post("/predict", json=BODY)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == 'Bearer realm="coe"'
        assert "bearer token" in refused.json()["error"]
        wrong = client.post("/predict", json=BODY, headers=bearer("secret-b"))
        assert (wrong.status_code, wrong.headers["www-authenticate"]) == (
            401,
            'Bearer realm="coe", error="invalid_token"',
        )
        assert client.post(f"/v2/models/{NAME}/infer", content=b"").status_code == 401
        assert service.router.asked == 0
        assert client.post("/predict", json=BODY, headers=bearer("secret-a")).status_code == 200
        write(path, ben="secret-b")
        assert client.post("/predict", json=BODY, headers=bearer("secret-a")).status_code == 401
        assert client.post("/predict", json=BODY, headers=bearer("secret-b")).status_code == 200
        assert client.get("/plan", headers=bearer("secret-b")).json()["cascade"]["name"] == NAME


def test_the_bench_client_takes_a_token(tmp_path: Path) -> None:
    data = DataSet(items(20), TABLE.labels[:20], TABLE.items[:20], TABLE.splits[:20])
    access = Access(tokens=str(write(tmp_path / "tokens.yaml", anna="secret-a")))
    with served(access) as service:
        known = run_bench(service.url, data, "table", 500.0, 1, token="secret-a")
        unknown = run_bench(service.url, data, "table", 500.0, 1)
    assert [a.answer for a in known.answers] == route(planned().cascade, TABLE).answer[:20].tolist()
    assert {a.http_status for a in unknown.answers} == {401}


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_limits_are_strict_arguments_of_the_deployment() -> None:
    args = CascadeArgs.model_validate({"plan": planned().model_dump(mode="json"), "access": {"max_items": 7}})
    assert args.access == Access(max_items=7)
    for wrong in ({"max_items": "7"}, {"max_items": 0}, {"max_item": 7}, {"requests_per_s": 0}, {"access_log": 1}):
        with pytest.raises(ValueError, match="validation error"):
            CascadeArgs.model_validate({"plan": planned().model_dump(mode="json"), "access": wrong})


def test_too_much_at_once_is_413_and_reaches_no_member() -> None:
    with served(Access(max_body_bytes=300, max_items=3)) as service, httpx.Client(base_url=service.url) as client:
        four = client.post("/predict", json={"items": [{"input": item(1)}] * 4})
        assert four.status_code == 413
        assert four.json()["errors"] == [{"field": "items", "rule": "must be at most 3 items", "found": "4 items"}]
        long = client.post("/predict", content=b"x" * 301)
        assert long.status_code == 413
        assert long.json()["errors"] == [{"field": "body", "rule": "must be at most 300 bytes", "found": "301"}]
        streamed = client.post("/predict", content=iter([b"x" * 200, b"x" * 200]))  # without a Content-Length
        assert streamed.status_code == 413
        assert streamed.json()["errors"][0]["found"].startswith("at least")
        assert service.router.asked == 0
        assert client.post("/predict", json={"items": [{"input": item(1)}] * 3}).status_code == 200


def test_an_endless_body_is_not_read_to_its_end() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b" " * 100

    with pytest.raises(TooLarge, match="must be at most 1000 bytes, got at least 1100"):
        asyncio.run(body_within(endless(), None, 1000))
    assert taken == 11
    with pytest.raises(TooLarge, match="got 1001"):
        asyncio.run(body_within(endless(), "1001", 1000))
    assert taken == 11


def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens.yaml", anna="secret-a", ben="secret-b")
    access = Access(tokens=str(path), requests_per_s=0.1, burst=3)
    with served(access) as service, httpx.Client(base_url=service.url) as client:
        codes = [client.post("/predict", json=BODY, headers=bearer("secret-a")).status_code for _ in range(4)]
        assert codes == [200, 200, 200, 429]
        late = client.get(f"/v2/models/{NAME}", headers=bearer("secret-a"))
        assert late.status_code == 429
        assert 8 <= int(late.headers["retry-after"]) <= 10
        assert "anna asks too often" in late.json()["error"]
        assert client.post("/predict", json=BODY, headers=bearer("secret-b")).status_code == 200
        assert client.get("/healthz").status_code == 200
        assert len(service.router.ids) == 4


def test_without_tokens_clients_are_told_apart_by_address() -> None:
    with served(Access(requests_per_s=0.1, burst=1)) as service, httpx.Client(base_url=service.url) as client:
        assert client.get("/plan").status_code == 200
        refused = client.get("/plan")
        assert (refused.status_code, refused.json()["error"][:23]) == (429, "127.0.0.1 asks too ofte")


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=60),
    st.floats(0.5, 10),
    st.integers(1, 5),
)
def test_a_bucket_never_lets_more_in_than_it_promises(gaps_s: list[float], rate_per_s: float, burst: int) -> None:
    now = 0.0
    buckets = Buckets(rate_per_s, burst, lambda: now)
    admitted: list[float] = []
    for gap_s in gaps_s:
        now += gap_s
        wait_s = buckets.wait_s("a")
        if wait_s == 0:
            admitted.append(now)
        else:
            earlier, now = now, now + wait_s + 1e-6
            assert buckets.wait_s("a") == 0, (earlier, wait_s)
            admitted.append(now)
    for i, first in enumerate(admitted):
        for j in range(i, len(admitted)):
            assert j - i + 1 <= burst + rate_per_s * (admitted[j] - first) + 1e-6


def test_clients_do_not_share_a_bucket_and_old_ones_are_forgotten() -> None:
    now = 0.0
    buckets = Buckets(0.001, 1, lambda: now)
    assert buckets.wait_s("a") == 0
    assert buckets.wait_s("b") == 0
    assert buckets.wait_s("a") == 1000
    for n in range(CLIENTS_KEPT):
        buckets.wait_s(f"client-{n}")
    assert len(buckets._left) == CLIENTS_KEPT
    assert buckets.wait_s("a") == 0


def test_other_origins_are_not_let_in() -> None:
    with served() as service, httpx.Client(base_url=service.url, headers={"Origin": "https://elsewhere"}) as client:
        asked = client.options("/predict", headers={"Access-Control-Request-Method": "POST"})
        answered = client.post("/predict", json=BODY)
    assert (asked.status_code, answered.status_code) == (405, 200)
    for response in (asked, answered):
        assert not [name for name in response.headers if name.startswith("access-control")]


# --- The access log ---------------------------------------------------------------------------------------------------


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(json.loads(record.getMessage()))

    def wait_for(self, count: int) -> list[dict[str, object]]:
        """The lines, once there are so many: a line is written after its response has left."""
        deadline_s = time.monotonic() + 5
        while len(self.told) < count and time.monotonic() < deadline_s:
            time.sleep(0.005)
        return self.told


def logged() -> tuple[logging.Logger, Lines]:
    log, lines = logging.Logger("tests.access"), Lines()
    log.addHandler(lines)
    return log, lines


def test_every_request_has_its_line(tmp_path: Path) -> None:
    log, lines = logged()
    path = write(tmp_path / "tokens.yaml", anna="secret-a")
    access = Access(tokens=str(path), access_log=True)
    with served(access, log) as service, httpx.Client(base_url=service.url, headers=bearer("secret-a")) as client:
        many = {"items": [{"input": item(row)} for row in range(40)]}
        ids = {"x-request-id": "mine-1"}
        answered = client.post("/predict", json=many, headers=ids)
        tiers = [a["tier"] for a in answered.json()["answers"]]
        service.router.down = {"large"}
        degraded = client.post("/predict", json=many)
        client.post("/predict", content=b'{"a\\nb": 1}')
        client.get("/healthz", headers={"Authorization": ""})
        client.get("/plan", headers={"Authorization": "Bearer no"})
        first, second, third, fourth, fifth = lines.wait_for(5)
    assert answered.headers["x-request-id"] == first["request_id"] == "mine-1"
    assert (first["client"], first["method"], first["path"], first["status"]) == ("anna", "POST", "/predict", 200)
    assert (first["items"], first["degraded"]) == (40, 0)
    assert first["tiers"] == {"0": tiers.count(0), "1": tiers.count(1)}
    assert isinstance(first["seconds"], float)
    assert 0 < first["seconds"] < 10
    assert second["degraded"] == int(degraded.headers["x-coe-degraded"]) == tiers.count(1)
    assert second["request_id"] == degraded.headers["x-request-id"] != "mine-1"
    assert (third["status"], third["items"], third["tiers"]) == (422, 0, {})
    assert (fourth["status"], fourth["client"]) == (200, "127.0.0.1")
    assert (fifth["status"], fifth["client"]) == (401, "127.0.0.1")


def test_a_fault_of_ours_is_a_500_that_tells_no_secrets() -> None:
    log, lines = logged()
    with served(Access(access_log=True), log) as service:
        service.router.fault = RuntimeError("secret")
        for path, body in (("/predict", BODY), (f"/v2/models/{NAME}/infer", V2_BODY)):
            response = httpx.post(f"{service.url}{path}", json=body)
            assert response.status_code == 500
            assert list(response.json()) == ["error"]
            assert "secret" not in response.text
        assert [line["status"] for line in lines.wait_for(2)] == [500, 500]


def test_it_is_off_unless_asked_for() -> None:
    log, lines = logged()
    with served(Access(), log) as service:
        httpx.post(f"{service.url}/predict", json=BODY)
    assert lines.told == []


def test_the_default_log_goes_to_standard_error_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("coe.access")
    assert not log.handlers
    try:
        with served(Access(access_log=True)) as service:
            httpx.get(f"{service.url}/healthz")
        assert json.loads(capfd.readouterr().err.strip())["path"] == "/healthz"
    finally:
        log.handlers.clear()


def test_every_response_carries_its_id() -> None:
    with served() as service, httpx.Client(base_url=service.url) as client:
        ids = {client.get(path).headers["x-request-id"] for path in ("/healthz", "/nowhere", "/plan", "/v2")}
    assert len(ids) == 4
