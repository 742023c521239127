"""Line charts as SVG text, drawn here so that nothing needs to be installed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300  # pixels of one chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 46
_COLORS = ("#0b6e4f", "#b5432a", "#31598c", "#7a5195")


@dataclass(frozen=True, slots=True)
class Chart:
    """`series` maps a name to points (x, y), x > 0, ascending; the x axis is logarithmic, the y axis begins at 0."""

    title: str
    x: str  # what it counts
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]


def svg(charts: Sequence[Chart]) -> str:
    """The charts side by side."""
    width = WIDTH * max(len(charts), 1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}" '
    lines = [
        head + 'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{HEIGHT}" fill="white"/>',
    ]
    for number, chart in enumerate(charts):
        lines += [f'<g transform="translate({number * WIDTH} 0)">', *_draw(chart), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _draw(chart: Chart) -> Iterator[str]:
    points = [point for series in chart.series.values() for point in series]
    lowest, highest = min(x for x, _ in points), max(x for x, _ in points)
    step = _tick(max(y for _, y in points) or 1.0)
    top = step * math.ceil((max(y for _, y in points) or 1.0) / step)
    inner_width, inner_height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        along = math.log(x / lowest) / math.log(highest / lowest) if highest > lowest else 0.5
        return _LEFT + along * inner_width, _TOP + (1 - y / top) * inner_height

    yield _text(WIDTH / 2, 16, chart.title, "middle", "bold")
    for i in range(round(top / step) + 1):
        _, y = at(lowest, i * step)
        yield f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield _text(_LEFT - 6, y + 4, f"{i * step:g}", "end")
    for value in sorted({x for x, _ in points}):
        yield _text(at(value, 0)[0], HEIGHT - _BOTTOM + 16, f"{value:g}", "middle")
    yield _text(_LEFT + inner_width / 2, HEIGHT - 10, chart.x, "middle")
    yield f'<g transform="translate(14 {_TOP + inner_height / 2:.1f}) rotate(-90)">{_text(0, 0, chart.y, "middle")}</g>'
    for number, (name, series) in enumerate(chart.series.items()):
        color = _COLORS[number % len(_COLORS)]
        places = [at(x, y) for x, y in series]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places)
        yield f'<rect x="{_LEFT + 8}" y="{_TOP + 14 * number}" width="10" height="3" fill="{color}"/>'
        yield _text(_LEFT + 22, _TOP + 5 + 14 * number, name, "start")


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _tick(highest: float) -> float:
    """The distance of ticks, a round number, for about five of them."""
    power = 10.0 ** math.floor(math.log10(highest / 5))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= highest)
