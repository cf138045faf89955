"""What an operator asks a running service over HTTP, and what a browser makes of its page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coe import files
from coe.report.audits import Audited
from coe.report.live import LiveView
from coe.report.live_gears import LiveGear, LiveGears
from coe.report.nouns import Report
from coe.serving.auth import hashed
from coe.serving.live_page import Watch, page
from coe.types import Access, BearerTokens, RouterPlacement
from tests import report_case as case
from tests.serving.live_case import UP_S, served, watch
from tests.unit.test_metrics import AUDITS

DRIFTING = AUDITS.model_copy(
    update={
        "low": 0.09,
        "rate": 0.12,
        "high": 0.16,
        "verdict": "drift",
        "says": "the last tier answers 12.0% of all queries differently, at least 9.0% with confidence",
    }
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_live_json_is_the_view() -> None:
    seen = watch()
    with served(seen) as (url, _):
        response = httpx.get(f"{url}/live.json")
    view = LiveView.model_validate(response.json())
    assert view == seen.view()
    assert response.headers["cache-control"] == "no-store"
    minute = view.window("minute")
    assert minute.rate_per_s == pytest.approx(1.0, abs=0.05)
    assert view.window("all").requests == UP_S
    assert minute.costs[1].usd_per_hour == pytest.approx(sum(case.PRICES.values()))
    assert view.waiting == (3, 1)
    assert not view.alarms


def test_metrics_over_http() -> None:
    with served(watch(audits=AUDITS)) as (url, _):
        response = httpx.get(f"{url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {f.name: f for f in text_string_to_metric_families(response.text)}
    assert sum(s.value for s in families["coe_requests"].samples) == UP_S
    assert all(s.labels["router"] == "replica-1" for f in families.values() for s in f.samples)


@pytest.mark.parametrize(
    ("query", "accept", "is_html"),
    [
        ("", "*/*", False),
        ("", "text/html,application/xhtml+xml,*/*;q=0.8", True),
        ("?format=html", "*/*", True),
        ("?format=json", "text/html", False),
    ],
    ids=["json by default", "html for a browser", "html when asked for", "json when asked for"],
)
def test_the_report_so_far(query: str, accept: str, is_html: bool) -> None:
    seen = watch()
    with served(seen) as (url, _):
        response = httpx.get(f"{url}/report{query}", headers={"accept": accept})
    assert response.status_code == 200
    if is_html:
        assert response.headers["content-type"].startswith("text/html")
        assert "On usage the cascade" in response.text
    else:
        report = Report.model_validate(response.json())
        assert report == seen.report()
        assert report.served.requests == UP_S


def test_reports_that_cannot_be_made_say_why() -> None:
    two = case.plan().model_copy(update={"router": RouterPlacement(node_type="cpu-node", replicas=2)})
    for seen, why in ((watch(up_s=0), "nothing has happened so far"), (watch(two, up_s=9), "all 2 routers")):
        with served(seen) as (url, _):
            response = httpx.get(f"{url}/report")
        assert response.status_code == 409
        assert why in response.text
    with served(watch(up_s=9)) as (url, _):
        mistaken = httpx.get(f"{url}/report?format=pdf")
    assert mistaken.status_code == 422
    assert mistaken.json()["errors"][0]["field"] == "format"


def test_figures_want_the_token_and_the_page_does_not(tmp_path: Path) -> None:
    files.write(tmp_path / "tokens.yaml", BearerTokens(tokens=(hashed("anna", "secret"),)))
    with served(watch(up_s=9), Access(tokens=str(tmp_path / "tokens.yaml"))) as (url, _):
        assert httpx.get(url).status_code == 200
        for path in ("live.json", "metrics", "report"):
            assert httpx.get(f"{url}/{path}").status_code == 401
            known = httpx.get(f"{url}/{path}", headers={"Authorization": "Bearer secret"})
            assert known.status_code == 200
        document = httpx.get(f"{url}/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    assert document["paths"]["/"]["get"]["security"] == []


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html, policy = page()
    assert "default-src 'none'" in policy
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", html)
    assert not re.search(r"\b(?:onclick|onload|style)=\"", html), "the policy would refuse it"
    assert re.search(r"@import|url\(", html) is None


# --- In a browser -----------------------------------------------------------------------------------------------------


class Texts(HTMLParser):
    """Text by the id of the element that it stands in, at any depth; hidden elements are left out."""

    VOID = ("meta", "input", "br", "link", "line", "path")

    def __init__(self, html: str) -> None:
        super().__init__()
        self._open: list[tuple[str, str | None, bool]] = []
        self.found: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in self.VOID:
            self._open.append((tag, given.get("id"), "hidden" in given or tag in ("script", "style")))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(is_hidden for *_, is_hidden in self._open):
            for _, name, _ in self._open:
                if name:
                    self.found[name] = f"{self.found.get(name, '')} {data.strip()}".strip()


@pytest.fixture(scope="module")
def browser() -> str:
    """A headless browser."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    return found


def looked_at(browser: str, url: str, tmp_path: Path, *arguments: str) -> tuple[Texts, str]:
    """What the page shows after some seconds of its own time, and what it complained about."""
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,1500",
        "--virtual-time-budget=6500",
        *arguments,
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    complaints = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Texts(done.stdout), complaints


def test_a_browser_shows_the_figures(browser: str, tmp_path: Path) -> None:
    seen = watch(audits=AUDITS)
    with served(seen) as (url, asked):
        shown, complaints = looked_at(browser, url, tmp_path, "--dump-dom")
    assert complaints == ""
    text = shown.found
    assert text["plan"] == "tiny"
    assert text["state"] == "live"
    assert text["about"].startswith("up 10 min")
    assert "alarms" not in text
    assert "ask" not in text
    minute = seen.view().window("minute")
    assert f"{1000 * (minute.p50_s or 0):.3g} ms" in text["cards"]
    assert f"{100 * abs(minute.costs[1].saved or 0):.1f}%" in text["cards"]
    assert "$4.68" in text["cards"]
    assert "2 of 2 votes" in text["tiers"]
    assert "always answers" in text["tiers"]
    assert f"{100 * (minute.tiers[0].agreement or 0):.1f}%" in text["tiers"]
    assert {"small", "other", "large"} <= set(text["members"].split())
    assert "30 queries compared, 3 answered differently" in text["audits"]
    assert "answers per second" in text["trend"]
    assert asked.paths.count("/live.json") >= 3, "it polls"
    assert set(asked.paths) <= {"/", "/live.json", "/favicon.ico"}


def test_a_browser_shows_what_is_wrong(browser: str, tmp_path: Path) -> None:
    with served(watch(failing=True, audits=DRIFTING)) as (url, _):
        shown, complaints = looked_at(browser, url, tmp_path, "--dump-dom")
    assert complaints == ""
    assert "Drift: the last tier answers 12.0%" in shown.found["alarms"]
    assert "6 of 600 queries of the last hour got no answer" in shown.found["alarms"]
    assert "large on a100-node failed or were late" in shown.found["alarms"]


class Shifted:
    """A router that is in the first of two gears; the second has shown drift, and rests."""

    def view(self) -> LiveGears:
        def gear(name: str, audits: Audited) -> LiveGear:
            return LiveGear(
                name=name,
                plan_fingerprint=name,
                up_to_per_s=10.0,
                back_below_per_s=0.0,
                promised="little is lost",
                epsilon=0.05,
                accuracy_planned=0.9,
                seconds=60.0,
                requests=9,
                answers=9,
                audits=audits,
            )

        gears = (gear("calm", AUDITS.model_copy(update={"resting": 1})), gear("rush", DRIFTING))
        return LiveGears(now="calm", is_pinned=False, rate_per_s=3.0, look_back_s=30.0, changes=2, gears=gears)

    def watches(self) -> list[tuple[str, Watch]]:
        return []


def test_a_browser_shows_what_the_audits_of_every_gear_say(browser: str, tmp_path: Path) -> None:
    seen = watch(audits=AUDITS.model_copy(update={"skipped": 3, "resting": 2}))
    seen.gearing = Shifted()
    with served(seen) as (url, _):
        shown, complaints = looked_at(browser, url, tmp_path, "--dump-dom")
    assert complaints == ""
    low, high = 100 * DRIFTING.low, 100 * DRIFTING.high
    assert f"{low:.2f}% – {high:.2f}% DRIFT" in shown.found["gears"]
    assert shown.found["gears"].count("DRIFT") == 1
    assert "Drift in gear rush: the last tier" in shown.found["alarms"]
    assert (
        "1 left out for lack of money or time; 2 left out because another gear had taken over" in shown.found["audits"]
    )


def test_a_browser_asks_for_the_token(browser: str, tmp_path: Path) -> None:
    files.write(tmp_path / "tokens.yaml", BearerTokens(tokens=(hashed("anna", "secret"),)))
    with served(watch(up_s=9), Access(tokens=str(tmp_path / "tokens.yaml"))) as (url, _):
        shown, _ = looked_at(browser, url, tmp_path, "--dump-dom")
    assert shown.found["state"] == "token needed"
    assert "Show" in shown.found["ask"]
    assert "cards" not in shown.found
