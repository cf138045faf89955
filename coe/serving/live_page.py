"""What an operator asks a running service: `/` the live page, `/live.json` its figures, `/report`, and `/metrics`.

All of them read the running sums, so none grows with what has been served. The page is one file that loads nothing from
elsewhere; it holds no figures, and so needs no token where the service wants one: it asks for it and sends it along.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from coe.errors import InvalidInput
from coe.ledger import LedgerState
from coe.records import Record
from coe.report.audits import Audited
from coe.report.html import render_html
from coe.report.live import LiveView, live_view, report_so_far
from coe.report.live_gears import LiveGears
from coe.report.live_gears import notes as gear_notes
from coe.report.nouns import Report
from coe.report.quality import claim_in_words
from coe.report.running import Running
from coe.serving import schemas
from coe.serving.http_api import error_body, refused
from coe.serving.ledger_state import ledger_exposition, ledger_notes, together
from coe.serving.metrics import CONTENT_TYPE, exposition, exposition_of_gears
from coe.serving.process_state import process_exposition
from coe.types import Plan

FRESH_S = 0.5
"""Viewers who come within this time see the same figures, so that many pages cost no more than one."""
FORMATS = ("json", "html")
"""Of `/report`."""


class Gearing(Protocol):
    """The gears of one router, as far as a watch needs to know them."""

    def view(self) -> LiveGears:
        """What an operator sees of them."""

    def watches(self) -> Sequence[tuple[str, Watch]]:
        """Name and watch of every gear that was in service."""


class Watch:
    """The running sums of one router, and what is asked about them. `record` takes every record as it is made."""

    def __init__(
        self,
        plan: Plan,
        clock: Callable[[], float],
        router: str,
        *,
        waiting: Callable[[], Sequence[int]] = tuple,
        audits: Callable[[], Audited | None] = lambda: None,
        ledger: Callable[[], LedgerState | None] = lambda: None,
    ) -> None:
        """router: how this one is called among several.   waiting: queries in each tier's queue."""
        self.running = Running(plan, clock())
        self.gearing: Gearing | None = None
        """The gears of the router, where it has some."""
        self._clock, self._router, self._waiting, self._audits = clock, router, waiting, audits
        self._ledger = ledger
        self._certificate = claim_in_words(plan)
        self._last: LiveView | None = None

    def record(self, record: Record) -> None:
        """Count a record."""
        self.running.add(record, self._clock())

    def view(self) -> LiveView:
        """The figures, at most `FRESH_S` old."""
        if self._last is None or not 0 <= self._clock() - self._last.now_s < FRESH_S:
            self._last = self._seen()
        return self._last

    def report(self) -> Report:
        """The report of everything so far. Raises `InvalidInput` where there is none; see `report_so_far`."""
        result = report_so_far(self.running, ledger_notes(self._ledgers()))
        if self.gearing is None:
            return result
        return result.model_copy(update={"notes": (*gear_notes(self.gearing.view()), *result.notes)})

    def metrics(self, tasks: int = 0) -> bytes:
        """What Prometheus reads. tasks: of the event loop."""
        own = process_exposition(tasks, self._router)
        return self._plans_exposition() + ledger_exposition(self._ledgers(), self._router) + own

    def _ledgers(self) -> LedgerState | None:
        """What has become of the records of the plan, or of all gears."""
        watches = [self] if self.gearing is None else {self, *(w for _, w in self.gearing.watches())}
        return together(w._ledger() for w in watches)

    def _plans_exposition(self) -> bytes:
        """The figures of the plan, or of every gear's."""
        if self.gearing is None:
            return exposition(self.running, self._seen())
        others = [(name, w.running, w._seen()) for name, w in self.gearing.watches() if w is not self]
        return exposition_of_gears((self.running, self._seen()), others, self.gearing.view())

    def _seen(self) -> LiveView:
        view = live_view(
            self.running,
            self._clock(),
            router=self._router,
            waiting=self._waiting(),
            audits=self._audits(),
            gears=None if self.gearing is None else self.gearing.view(),
            certificate=self._certificate,
        )
        return view.model_copy(update={"alarms": (*view.alarms, *ledger_notes(self._ledgers()))})


def page() -> tuple[str, str]:
    """The live page and its content security policy: its own script and style by their hashes, requests to its own host."""
    html = (files("coe.serving") / "static" / "live.html").read_text(encoding="utf-8")
    script, style = (_hash(html, tag) for tag in ("script", "style"))
    rules = (
        "default-src 'none'",
        f"script-src '{script}'",
        f"style-src '{style}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return html, "; ".join(rules)


def _hash(html: str, tag: str) -> str:
    """As browsers compute it of what stands between the tags."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    assert found is not None
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()


def mount(api: FastAPI, watch: Callable[[], Watch]) -> None:
    """Add the routes; `watch` gives the sums of the plan that is in service."""
    html, policy = page()
    headers = {"content-security-policy": policy, "cache-control": "no-cache", "x-content-type-options": "nosniff"}

    async def live_page() -> Response:
        """The page of figures, for people."""
        return HTMLResponse(html, headers=headers)

    async def live_json() -> Response:
        """What the page shows: the last minute, the last hour and everything so far."""
        body = watch().view().model_dump_json()
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def metrics() -> Response:
        """For Prometheus."""
        return Response(watch().metrics(len(asyncio.all_tasks())), headers={"content-type": CONTENT_TYPE})

    async def report(request: Request) -> Response:
        """The report of everything so far: JSON, or HTML for those who ask for `format=html` or accept it first."""
        default = "html" if _prefers_html(request.headers.get("accept", "")) else "json"
        wanted = request.query_params.get("format", default)
        if wanted not in FORMATS:
            mistake = refused("format", f"must be one of {', '.join(FORMATS)}", repr(wanted)[:60])
            return JSONResponse(error_body(mistake), status_code=422)
        try:
            result = watch().report()
        except InvalidInput as error:
            return JSONResponse(error_body(error), status_code=409)
        if wanted == "json":
            return Response(result.model_dump_json(), media_type="application/json")
        return HTMLResponse(await asyncio.to_thread(render_html, result))

    api.add_api_route("/", live_page, response_class=HTMLResponse)
    api.add_api_route("/live.json", live_json, response_model=LiveView)
    api.add_api_route("/metrics", metrics, responses=_text("Prometheus's text format"))
    api.add_api_route(
        "/report",
        report,
        response_model=Report,
        responses={
            409: {
                "model": schemas.Refusal,
                "description": "Nothing happened so far, or one router of several was asked",
            },
            422: {"model": schemas.Refusal, "description": "A mistake in the request"},
        },
        openapi_extra={
            "parameters": [
                {"name": "format", "in": "query", "required": False, "schema": {"enum": list(FORMATS)}},
            ]
        },
    )


def _prefers_html(accept: str) -> bool:
    """Whether a page comes first among what a client accepts, as it does for browsers."""
    return accept.split(",")[0].split(";")[0].strip() in ("text/html", "application/xhtml+xml")


def _text(description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}}
