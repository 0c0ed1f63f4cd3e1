"""Curves and points as SVG inside of the page, drawn by matplotlib, coloured by the page's style sheet.

Colours are written as marks (`#0100xx`) and replaced by CSS variables, so that one drawing serves light and dark; text
stays text, in the page's font. Sizes are CSS pixels: a drawing is as wide as a phone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 8
"""Series colours of the style sheet, `--s0` and on; more series begin again, dashed."""
WIDTH, HEIGHT = 372, 232
LEFT, BELOW = 50, 40
"""Room for the numbers of the axes (a layout that measures them draws everything twice)."""
MOST_POINTS = 300
"""Of a curve that is drawn; of more, neighbours are averaged."""

INK, MUTED, GRID, PAPER = "#010001", "#010002", "#010003", "#010004"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "text.color": INK,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """A series: its number (which gives its colour), and points (samples, value)."""

    number: int
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """A vertical line of a series: where it was resumed, or a phase began (`dotted`)."""

    number: int
    at: float
    dotted: bool = False


@dataclass(frozen=True)
class Point:
    """A model: its name, place, and the interval of its value."""

    number: int
    name: str
    x: float
    y: float
    low: float
    high: float


def curves(
    series: Sequence[Curve], x_label: str, marks: Sequence[Mark] = (), zero: bool = False, percent: bool = False
) -> Markup:
    """Curves over samples, on a logarithmic scale where positive values span two decades. `zero`: from there on."""
    values = [y for curve in series for _, y in curve.points]
    wide = not zero and min(values) > 0 and max(values) > 100 * min(values)

    def draw(axes: Axes) -> None:
        for curve in series:
            x, y = zip(*thinned(curve.points))
            dot = "o" if len(x) < 12 else ""
            axes.plot(
                x,
                y,
                color=colour(curve.number),
                linewidth=1.6,
                linestyle=_dash(curve.number),
                marker=dot,
                markersize=3.5,
            )
        for mark in marks:
            style = ":" if mark.dotted else "--"
            axes.axvline(mark.at, color=colour(mark.number), linewidth=1, linestyle=style, alpha=0.8)
        axes.set_xlabel(x_label)
        if wide:
            axes.set_yscale("log")
            axes.minorticks_off()
        elif zero:
            axes.set_ylim(bottom=0, top=max([*values, 1e-12]) * 1.08)
        axes.set_xlim(left=0)
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.xaxis.set_major_formatter(_short)
        if not percent and not wide:
            axes.yaxis.set_major_formatter(_short)

    return _svg(draw, salt=repr((series, marks, x_label, zero, percent)))


def against(points: Sequence[Point], x_label: str, chance: float) -> Markup:
    """Values in per cent with their intervals over something else, each point named; a dashed line is chance."""

    def draw(axes: Axes) -> None:
        xs = [point.x for point in points]
        wide = min(xs) > 0 and max(xs) > 30 * min(xs)
        for point in points:
            error = [[100 * (point.y - point.low)], [100 * (point.high - point.y)]]
            tint = colour(point.number)
            axes.errorbar(point.x, 100 * point.y, error, fmt="o", color=tint, markersize=6, elinewidth=1.4)
        axes.axhline(100 * chance, color=MUTED, linewidth=1, linestyle="--")
        axes.set_ylim(bottom=0, top=116 * max(point.high for point in points) or 1)
        axes.set_xlabel(x_label)
        if wide:
            axes.set_xscale("log")
        else:
            room = 0.16 * (max(xs) - min(xs)) or 0.5 * max(xs) or 1.0
            axes.set_xlim(min(xs) - room, max(xs) + room)
            axes.xaxis.set_major_formatter(_short)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        _write_names(axes, points)

    return _svg(draw, salt=repr((points, x_label, chance)))


def _write_names(axes: Axes, points: Sequence[Point]) -> None:
    """Each point's name above its interval, else beside or below it: where it covers no other name and no interval."""
    at = axes.transData.transform
    ends = [(*at((point.x, 100 * point.low)), *at((point.x, 100 * point.high))) for point in points]
    taken = [(x - 4, low, x + 4, high) for x, low, _, high in ends]
    for point in points:
        name = point.name if len(point.name) <= 18 else f"{point.name[:17]}…"
        (x, low), (_, middle), (_, high) = (at((point.x, 100 * y)) for y in (point.low, point.y, point.high))
        wide, tall = 6.0 * len(name), 11.0
        places = [
            (x - wide / 2, high + 2),
            (x + 7, middle - tall / 2),
            (x - 7 - wide, middle - tall / 2),
            (x - wide / 2, low - 2 - tall),
        ]
        boxes = [(left, below, left + wide, below + tall) for left, below in places]
        free = [box for box in boxes if box[0] >= LEFT and box[2] <= WIDTH and not any(_meet(box, b) for b in taken)]
        box = free[0] if free else boxes[0]
        taken.append(box)
        middle_of_name = ((box[0] + box[2]) / 2, box[1] + 2)
        axes.annotate(name, middle_of_name, xycoords="figure pixels", ha="center", va="baseline", fontsize=10)


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def colour(number: int) -> str:
    """The mark of a series' colour."""
    return f"#0101{number % COLOURS:02x}"


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points: means of neighbours, the first and the last kept."""
    if len(points) <= most:
        return list(points)
    inner, groups = points[1:-1], most - 2
    edges = [round(group * len(inner) / groups) for group in range(groups + 1)]
    means = [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in (inner[first:last] for first, last in pairwise(edges))
        if part
    ]
    return [points[0], *means, points[-1]]


def _dash(number: int) -> str:
    return ("-", "--", ":", "-.")[number // COLOURS % 4]


def _short(value: float, _: Any = None) -> str:
    """12k, 3.5M, 0.001."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:g}"


def _svg(draw: Callable[[Axes], None], salt: str) -> Markup:
    """What `draw` draws. Ids come from `salt`, so that the same page has the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_RC, "svg.hashsalt": salt}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_axes((LEFT / WIDTH, BELOW / HEIGHT, 1 - (LEFT + 8) / WIDTH, 1 - (BELOW + 8) / HEIGHT))
        axes.tick_params(length=0, pad=5)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_themed(out.getvalue()))  # matplotlib escapes the texts


def _themed(svg: str) -> str:
    """For use inside of HTML: no header, no style or ids of its own that could meet another drawing's, our colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', svg, count=1)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg.replace("xlink:href", "href"))
    for mark, variable in _VARIABLES.items():
        svg = svg.replace(mark, variable)
    svg = re.sub(r"#0101(0[0-7])", lambda found: f"var(--s{int(found[1])})", svg)
    return re.sub(r"\n\s*", "\n", svg)
