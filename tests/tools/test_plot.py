from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from mlc.tools.plot import HEIGHT, WIDTH, Chart, svg

SVG = "{http://www.w3.org/2000/svg}"


def circles(text: str) -> list[tuple[float, float]]:
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in ET.fromstring(text).iter(f"{SVG}circle")]


def test_points_lie_where_their_numbers_say() -> None:
    chart = Chart("speed", "tokens", "tokens/s", {"ours": [(128, 50), (512, 100), (2048, 0)]})
    (x0, y0), (x1, y1), (x2, y2) = circles(svg([chart]))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2), "four times as much is one step, anywhere"
    assert y0 - y1 == pytest.approx(y2 - y0, abs=0.2), "twice as fast is twice as high"
    assert 0 < x0 < x2 < WIDTH and 0 < y1 < y2 < HEIGHT


def test_names_are_text_whatever_they_hold() -> None:
    text = svg([Chart("a < b & c", "x", "y", {"<engine>": [(1, 1.0)]})])
    assert "a < b & c" in [t.text for t in ET.fromstring(text).iter(f"{SVG}text")]
    assert len(circles(text)) == 1


def test_charts_stand_side_by_side() -> None:
    chart = Chart("t", "x", "y", {"a": [(1, 3e-4), (8, 1e-4)], "b": [(1, 5e-4)]})
    tree = ET.fromstring(svg([chart, chart]))
    assert int(tree.get("width", "")) == 2 * WIDTH
    assert len(list(tree.iter(f"{SVG}circle"))) == 6
    assert {p.get("stroke") for p in tree.iter(f"{SVG}path")} == {"#ddd", "#0b6e4f", "#b5432a"}


@pytest.mark.parametrize(("highest", "ticks"), [(94.0, ["0", "20", "40", "60", "80", "100"]), (0.0, ["0", "0.2"])])
def test_ticks_are_round(highest: float, ticks: list[str]) -> None:
    text = svg([Chart("t", "x", "y", {"a": [(1, highest)]})])
    shown = [t.text for t in ET.fromstring(text).iter(f"{SVG}text") if t.get("text-anchor") == "end"]
    assert shown[: len(ticks)] == ticks
