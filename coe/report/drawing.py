"""What all pictures share: colours that follow the page, bare axes, SVG with real text, made by matplotlib without any display.

Colours are CSS variables (`PALETTE`), so that a picture follows the page it stands in, light or dark; a picture that stands
alone brings them along. The same data gives the same bytes: ids are hashed from the content and carry the plot's name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import Any

from coe.errors import Unavailable

PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1c2330", "#e8ebf2"),
    "soft": ("#5d6779", "#9aa5b8"),
    "line": ("#dde2ea", "#333c4d"),
    "idle": ("#dfe3ea", "#3a4354"),
    "router": ("#9aa4b5", "#6b778d"),
    "tier1": ("#2f6fde", "#6ea3ff"),
    "tier2": ("#e08a1e", "#f3ad4e"),
    "tier3": ("#8a4fcf", "#b48af0"),
    "tier4": ("#c2417c", "#ee82b0"),
    "single": ("#4a5568", "#aab4c6"),
    "good": ("#17845b", "#4cc793"),
    "bad": ("#c9352b", "#ff7b70"),
    "paper": ("#ffffff", "#171c26"),
}
"""CSS variable -> colour on light and on dark paper."""

TIERS = ("tier1", "tier2", "tier3", "tier4")
WIDTH_IN = 7.4


def palette_css(root: str = ":root") -> str:
    """The palette as CSS custom properties, dark where the reader's system asks for it."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    return f"{root}{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{{root}{{{dark}}}}}"


def ink(name: str) -> str:
    """The light colour; `svg` turns it into the CSS variable. No two of them are equal."""
    return PALETTE[name][0]


def figure_of(height_in: float, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its axes, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=ink("soft"), labelcolor=ink("ink"), labelsize=9.5, length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    return figure, axes


def beside(axis: Any, x: float, y: float, text: str, size: float = 10, colour: str = "ink", bold: bool = False) -> None:
    """Text a little to the right of a point."""
    axis.annotate(
        text,
        (x, y),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=ink(colour),
        fontsize=size,
        fontweight="bold" if bold else "normal",
    )


def bare(axis: Any) -> None:
    """Bars whose figures are written beside them need no scale."""
    axis.set_xticks([])
    axis.axvline(0, color=ink("router"), linewidth=1.2)


def ruled(axis: Any, which: str = "both") -> None:
    axis.grid(axis=which, color=ink("line"), linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelcolor=ink("soft"), axis="x")


def legend(figure: Any, handles: Iterable[Any], names: Iterable[str]) -> None:
    legend = figure.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=6,
        frameon=False,
        fontsize=9,
        handlelength=1.0,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_color(ink("soft"))


def svg(draw: Callable[[], Any], name: str, alone: bool = False) -> str:
    """The figure as an `<svg>` element: text as text, colours as CSS variables, ids with the plot's name.

    Empty where there is nothing to draw.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise Unavailable("plots need matplotlib; run: pip install 'coe[report]'") from error
    out = io.StringIO()
    # a dollar sign is a dollar sign and no mathematics
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "coe", "text.parse_math": False}):
        figure = draw()
        if figure is None:
            return ""
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r' xmlns:xlink="[^"]+"', "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for variable, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{variable})")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    text = re.sub(r'<svg width="[^"]+" height="[^"]+"', "<svg", text, count=1)
    label = f'<svg class="plot" role="img" aria-label="{name}"'
    if alone:
        label += f' width="{float(size[1]) * 4 / 3:.0f}" height="{float(size[2]) * 4 / 3:.0f}"'
        text = text.replace(
            ">", f'><style>{palette_css("svg")}</style><rect width="100%" height="100%" fill="var(--paper)"/>', 1
        )
    return text.replace("<svg", label, 1) + "\n"
