"""Plots as inline SVG that takes its colours from the page, so that one drawing serves light and dark."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from stackloom.plan_table import count
from stackloom.report.record import Series

# Each colour stands for a variable of the page's style sheet.
INK, RULE, ACCENT, FAINT, WARM = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", RULE: "--rule", ACCENT: "--accent", FAINT: "--faint", WARM: "--warm"}
# Comments, a style sheet that would reach the whole page, and fonts: the page has its own.
_REST = re.compile(r"<!--.*?-->\s*|<defs>\s*<style.*?</style>\s*</defs>\s*|font-family: [^;]*; ", re.DOTALL)
_WIDTH = 4.8  # inches; 72 units each, about as wide as a phone, so that text stays readable there
_STYLE: Any = {
    "svg.hashsalt": "stackloom",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def curve(name: str, series: Series, *, smooth: int = 0) -> Markup:
    """Draw a metric by step, with the mean of the last `smooth` steps over it where that is above 1.

    Args:
        name: unique on the page; prefixes every id of the drawing.
        series: the metric.
        smooth: steps of the running mean.
    """

    def draw(axes: Any) -> None:
        raw = FAINT if smooth > 1 else ACCENT
        marker = "o" if len(series.steps) < 40 else ""
        axes.plot(series.steps, series.values, color=raw, marker=marker, markersize=3, label="each step")
        if smooth > 1:
            axes.plot(series.steps, running_mean(series.values, smooth), color=ACCENT, label=f"mean of last {smooth}")
            axes.legend(loc="best")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))

    return _svg(name, draw, 2.6)


def dots(name: str, values: Sequence[float], *, across: str, up: str, lowest: bool = True) -> Markup:
    """Draw one dot per value in order, the lowest marked; or the highest marked, on a logarithmic axis if positive."""
    finite = [(index, value) for index, value in enumerate(values) if math.isfinite(value)]

    def draw(axes: Any) -> None:
        axes.plot(*zip(*finite, strict=True), linestyle="", marker="o", markersize=3.5, color=ACCENT)
        worst = (min if lowest else max)(finite, key=lambda pair: pair[1])
        ring = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "markeredgecolor": WARM}
        axes.plot(*worst, linestyle="", label="lowest" if lowest else "highest", **ring)
        axes.legend(loc="best")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if not lowest and all(value > 0 for _, value in finite):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))

    return _svg(name, draw, 2.6)


def intervals(
    name: str, rows: Sequence[tuple[str, float, tuple[float, float] | None]], *, across: str, zero: bool
) -> Markup:
    """Draw a dot with its interval per row, the first row on top.

    Args:
        name: unique on the page.
        rows: (label, value, interval).
        across: the axis title.
        zero: whether a line marks zero.
    """

    def draw(axes: Any) -> None:
        for place, (_, value, interval) in enumerate(rows):
            if interval is not None:
                axes.plot(interval, [place, place], color=ACCENT, linewidth=2, solid_capstyle="round")
            axes.plot([value], [place], marker="o", markersize=6, color=ACCENT)
        if zero:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(across)

    return _svg(name, draw, 0.75 + 0.38 * len(rows))


def lines(
    name: str,
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    across: str,
    up: str,
    scale: Literal["linear", "log"] = "linear",
) -> Markup:
    """Draw one line per series over the same places; None leaves a gap.

    Args:
        name: unique on the page.
        x: places.
        series: values by the line's label.
        across, up: axis titles.
        scale: of the places.
    """

    def draw(axes: Any) -> None:
        styles = itertools.product(("-", "--", ":"), (ACCENT, WARM, INK, FAINT))
        for (label, values), (dash, colour) in zip(series.items(), itertools.cycle(styles), strict=False):
            drawn = [math.nan if value is None else value for value in values]
            axes.plot(
                x, drawn, linestyle=dash, color=colour, marker="o" if len(x) < 40 else "", markersize=3, label=label
            )
        axes.legend(loc="best")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if scale == "log":
            axes.set_xscale("log")
            axes.set_xticks(list(x))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))

    return _svg(name, draw, 2.6)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return at each place the mean of the last `window` finite values; NaN where there is none."""
    means = []
    for end in range(1, len(values) + 1):
        recent = [value for value in values[max(0, end - window) : end] if math.isfinite(value)]
        means.append(math.fsum(recent) / len(recent) if recent else math.nan)
    return means


def tick(value: float) -> str:
    """Write an axis value in few characters: 12 k, 0.25, 1e-5."""
    if abs(value) >= 1e4:
        return count(value) if value > 0 else f"−{count(-value)}"
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _svg(name: str, draw: Callable[[Any], None], height: float) -> Markup:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = _REST.sub("", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1).strip())
