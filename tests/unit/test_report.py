"""How a report looks: text and Markdown to the letter, HTML that stands alone, plots that do not change by themselves."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from coe.report import words
from coe.report.drawing import PALETTE
from coe.report.front_plot import front_plot
from coe.report.html import render_html
from coe.report.markdown import render_markdown
from coe.report.nouns import Report
from coe.report.plots import report_plots
from coe.report.summarise import summarise
from coe.report.text import render_text
from coe.types import Cascade, CascadeStats, Front, FrontPoint, Tier
from tests import report_case as case

Golden = Callable[[str, str], None]


@pytest.fixture(scope="module")
def report() -> Report:
    return summarise(case.plan(), case.records(), bench=case.bench(), table=case.table())


@pytest.fixture(scope="module")
def bare() -> Report:
    """Nothing but a ledger: no client, no predictions, no baseline, no certificate."""
    return summarise(case.plan(certified=False, baseline=False), case.records())


@pytest.fixture(scope="module")
def plots(report: Report) -> dict[str, str]:
    return report_plots(report)


# --- Text and Markdown ------------------------------------------------------------------------------------------------


def test_text_to_the_letter(report: Report, golden: Golden) -> None:
    golden("report.txt", render_text(report))


def test_text_of_a_bare_ledger_to_the_letter(bare: Report, golden: Golden) -> None:
    golden("report_bare.txt", render_text(bare))


def test_markdown_to_the_letter(report: Report, golden: Golden) -> None:
    golden("report.md", render_markdown(report))


def test_text_fits_a_terminal(report: Report) -> None:
    lines = render_text(report).splitlines()
    assert len(lines) <= 70
    assert max(len(line) for line in lines) <= 120


def test_every_node_type_is_shown_with_source_and_date_of_its_price(report: Report) -> None:
    for text in (render_text(report), render_markdown(report), render_html(report)):
        for node in report.nodes:
            assert node.date in text
            assert node.source in text


def test_markdown_takes_names_literally(report: Report) -> None:
    odd = report.model_copy(update={"notes": ("a_b|c<d> `e` *f*",)})
    assert "- a\\_b\\|c\\<d\\> \\`e\\` \\*f\\*" in render_markdown(odd)


def test_the_report_survives_json(report: Report) -> None:
    assert Report.model_validate_json(report.model_dump_json()) == report


# --- Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "$0.00"),
        (3.6, "$3.60"),
        (1234.567, "$1,234.57"),
        (0.000146, "$0.000146"),
        (-0.5, "-$0.500"),
        (None, "unknown"),
    ],
)
def test_dollars_have_three_digits_and_at_least_cents(value: float | None, shown: str) -> None:
    assert words.usd(value) == shown


def test_dollars_of_a_column_share_their_decimals() -> None:
    assert words.usd_column([0.0003, 0.004, 0.013, None]) == ["$0.000300", "$0.004000", "$0.013000", "unknown"]
    assert words.usd_column([5.0, 0.00000001]) == ["$5.00000", "<$0.00001"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.2, "1.20 s"),
        (0.2137, "214 ms"),
        (0.0025, "2.50 ms"),
        (0.00015, "150 µs"),
        (0.9999, "1.00 s"),
        (0, "0 s"),
        (75, "75.0 s"),
    ],
)
def test_durations_have_three_digits_in_a_fitting_unit(value: float, shown: str) -> None:
    assert words.seconds(value) == shown


def test_a_window_over_midnight_names_both_days() -> None:
    assert words.span(86_390, 86_410) == "1970-01-01 23:59:50 to 1970-01-02 00:00:10 UTC"


# --- HTML -------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects ids, text and addresses, and checks that tags close in the order in which they opened."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.note(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def note(self, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")
        ]


def test_html_is_well_formed_and_says_the_verdict(report: Report, plots: dict[str, str]) -> None:
    page = Page(render_html(report, plots))
    assert len(page.ids) == len(set(page.ids))
    for sentence in report.verdict:
        assert sentence in page.text
    for line in report.usage_lines:
        assert line.name in page.text
    assert "missed" in page.text


def test_html_asks_nobody_for_anything(report: Report, plots: dict[str, str]) -> None:
    html = render_html(report, plots)
    page = Page(html)
    assert all(address.startswith("#") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "img"}
    assert not re.search(r"@import|url\((?!#)", html)
    outside = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert outside <= {"http://www.w3.org/2000/svg"}  # the name of SVG, which no browser fetches


def test_html_escapes_names(report: Report) -> None:
    evil = report.model_copy(update={"notes": ("<script>alert('x')</script>",)})
    page = Page(render_html(evil))
    assert "script" not in page.tags
    assert "<script>alert('x')</script>" in page.text


def test_html_without_plots_and_labels(bare: Report) -> None:
    page = Page(render_html(bare))
    assert "No single model keeps these promises" in page.text
    assert "svg" not in page.tags


# --- Plots ------------------------------------------------------------------------------------------------------------


def test_plots_are_the_same_every_time(report: Report, plots: dict[str, str]) -> None:
    assert set(plots) == {"savings", "nodes", "predicted", "tiers", "latency", "accuracy"}
    assert report_plots(report) == plots


def test_plots_hold_text_and_take_their_colours_from_the_page(plots: dict[str, str]) -> None:
    for name, svg in plots.items():
        ET.fromstring(svg)
        assert "<text" in svg, name
        assert not any(light in svg for light, _ in PALETTE.values()), name
    assert "$0.470" in plots["savings"]
    assert "promise: 99% within 500 ms" in plots["latency"]


def test_plots_without_data_are_left_out(bare: Report) -> None:
    assert set(report_plots(bare)) == {"savings", "nodes", "predicted", "tiers", "latency"}


def test_the_front_stands_alone() -> None:
    first, last = Tier(members=("small", "other"), quorum=2), Tier(members=("large",))

    def point(cascade: Cascade, usd: float, accuracy: float) -> FrontPoint:
        stats = CascadeStats(
            items=100,
            accuracy=accuracy,
            accuracy_low=accuracy - 0.02,
            accuracy_high=min(1.0, accuracy + 0.02),
            reach=(1.0,),
            accepted=(1.0,),
            accuracy_accepted=(accuracy,),
            calls={},
        )
        return FrontPoint(cascade=cascade, stats=stats, cost_per_1k=usd, loss_upper_bound=0.01)

    small, large = (Cascade(tiers=(Tier(members=(m,)),)) for m in ("small", "large"))
    chosen = point(Cascade(tiers=(first, last)), 0.1, 0.955)
    singles = (point(small, 0.02, 0.88), point(large, 0.5, 0.96))
    front = Front(
        reference="large",
        epsilon=0.02,
        delta=0.05,
        split="calibration",
        items=100,
        method="exhaustive",
        evaluated=3,
        unit_cost={"small": 0.00002, "large": 0.0005},
        cost_source="a price list for tests (2026-11-01)",
        points=(singles[0], chosen, singles[1]),
        singles=singles,
        chosen=chosen,
        verdict="",
    )
    svg = front_plot(front)
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert {"width", "height", "viewBox"} <= set(root.attrib)
    assert "prefers-color-scheme:dark" in svg
    for word in ("small + other → large", "chosen", "$0.05", "a price list for tests (2026-11-01)"):
        assert word in svg
    assert front_plot(front) == svg
