"""The choice among kernels by trying them: who is chosen, what is kept, and when nothing is tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T

from mlc.backends.cpu.choice import Trial
from mlc.backends.cpu.isa import host_isa
from mlc.backends.cpu.kernel import Frame, Kernel, Pointer
from mlc.backends.cpu.linear import Family
from mlc.backends.cpu.linear_quantized import tilings, trial
from mlc.backends.cpu.lower import layout_of
from mlc.backends.cpu.lower.products import LARGE
from mlc.backends.tvm import autotune
from mlc.backends.tvm.autotune import Autotuner, fastest
from mlc.compile import lower
from mlc.ir import Tensor, parse_format, parse_graph

from .test_linear import quantized_operands, quantized_rows, weights

FAMILIES: tuple[Family, ...] = ("small", "matrix")


def counter(name: str, rounds: int) -> Kernel:
    """Adds to each item, forty times for each of the rounds: far longer than a call takes by itself."""

    def body(f: Frame) -> None:
        with T.serial(0, 40 * rounds), T.serial(f.lo, f.hi) as i:
            T.buffer_store(f["y"], f["y"][i] * T.float32(0.5) + T.float32(1), [i])

    return Kernel(name, (Pointer("y", "float32"),), ("items",), lambda sizes: sizes["items"], body)


def trial_of(*rounds: int) -> Trial:
    kernels = [counter(f"count_{i}_{r}", r) for i, r in enumerate(rounds)]
    return Trial(kernels, {"y": 4 * 1024}, {"items": 1024})


def wanted(*rounds: int) -> list[Kernel]:
    return [counter(f"wanted_{i}_{r}", r) for i, r in enumerate(rounds)]


@pytest.mark.alone
def test_the_fastest_is_chosen() -> None:
    kernels = wanted(400, 100, 300)
    assert Autotuner(host_isa(), 60)(kernels, trial_of(400, 100, 300)) is kernels[1]


@pytest.mark.alone
def test_what_was_found_is_kept_for_the_same_machine_and_kernels(tmp_path: Path) -> None:
    kernels, isa = wanted(400, 100), host_isa()
    assert Autotuner(isa, 60, tmp_path)(kernels, trial_of(400, 100)) is kernels[1]
    later = Autotuner(isa, 0, tmp_path)  # has no time to try anything
    assert later(kernels, trial_of(400, 100)) is kernels[1]
    assert later(kernels, trial_of(401, 100)) is kernels[0], "another trial is another question"
    (kept,) = tmp_path.iterdir()
    for text in ("", "{", '{"a": 1}', "[]"):
        kept.write_text(text)
        assert Autotuner(isa, 0, tmp_path)(kernels, trial_of(400, 100)) is kernels[0]


@pytest.mark.alone
def test_a_choice_that_cannot_be_kept_is_made_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kernels = wanted(400, 100)
    assert Autotuner(host_isa(), 60, tmp_path / "file")(kernels, trial_of(400, 100)) is kernels[1]


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([[2.0, 1.0, 3.0]] * 3, 1),
        ([[1.0, 0.98]] * 3, 0),  # too near to tell
        ([[1.0, 1.1], [1.0, 1.1], [9.0, 0.1]], 0),  # once somebody else ran beside the first
        ([[1.0, 0.9], [5.0, 4.5], [0.8, 2.0]], 1),  # the machine became slower for a while
    ],
)
def test_the_fastest_is_found_within_rounds(rounds: list[list[float]], expected: int) -> None:
    assert fastest(rounds) == expected


def test_without_time_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "compile_program", None)
    kernels = wanted(400, 100)
    assert Autotuner(host_isa(), 0)(kernels, trial_of(400, 100)) is kernels[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_of_a_product_has_all_the_memory_that_it_touches(family: Family) -> None:
    isa, format = host_isa(), parse_format("q4a_g16_f32")  # nobody's scales take more
    assert format
    found = tilings(isa, format, family)
    work = trial(256, format, isa, family, found)
    (n,) = {int(kernel.name.split("_n")[1].split("_")[0]) for kernel in work.kernels}
    touched = quantized_operands(weights(n, 256, format), isa)
    touched |= quantized_rows(np.ones((work.sizes["rows"], 256)), format.group)
    assert {name for kernel in work.kernels for name in (p.name for p in kernel.pointers)} <= {*work.bytes, "scratch"}
    for name, part in touched.items():
        assert part.nbytes <= work.bytes[name], name
    assert len(work.kernels) == len(found)


def test_the_products_of_a_program_are_those_that_were_chosen_where_they_are_large() -> None:
    isa = host_isa()
    k, large = 1024, LARGE // 1024
    layout = layout_of(Tensor((large, k), "q4_g32"), isa)
    constants = "\n".join(
        f"  %w{n}: q4_g32@{layout}[{n}, {k}] = constant() {{name='w{n}', shape=({n}, {k}), dtype='q4_g32', "
        f"layout='{layout}'}}"
        for n in (large, 64)
    )
    graph = parse_graph(
        f"""graph g(%x: f32[n, {k}]) {{
  %q: a8_g32[n, {k}] = quantize_rows(%x) {{group=32}}
{constants}
  %y: f32[n, {large}] = linear(%q, %w{large})
  %z: f32[n, 64] = linear(%q, %w64)
  return %y, %z
}}"""
    )
    tried: list[Trial] = []

    def last(kernels: Sequence[Kernel], trial: Trial) -> Kernel:
        tried.append(trial)
        return kernels[-1]

    usual, _ = lower(graph, isa, {"n": 32})
    program, _ = lower(graph, isa, {"n": 32}, last)
    changed = [(a.kernel, b.kernel) for a, b in zip(usual.calls, program.calls, strict=True) if a.kernel != b.kernel]
    assert len(changed) == len(tried) > 0
    assert all(f"_n{large}_" in name for pair in changed for name in pair)
