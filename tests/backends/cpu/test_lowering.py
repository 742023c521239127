"""Every op has a lowering, and a graph of the ops that no model test reaches gives the reference's numbers."""

from __future__ import annotations

import numpy as np
import pytest

from mlc.backends.cpu.isa import ISAS, Isa, host_isa
from mlc.backends.cpu.lower import CpuLowering
from mlc.backends.cpu.lower.context import MANY
from mlc.backends.cpu.lower.products import families
from mlc.backends.executor import Executor
from mlc.backends.lowering import _LOWERINGS
from mlc.backends.memory import allocate
from mlc.backends.reference import evaluate
from mlc.backends.tvm.build import compile_program
from mlc.compile import lower
from mlc.errors import NoLowering
from mlc.ir import OPS, Builder, Graph, State, Tensor, Value, parse_graph, sym, verify
from mlc.ir import ops as o
from mlc.ir.types import parse_format

WEIGHT_ONLY = {"weight", "rope_frequencies", "quantize", "dequantize", "pack", "unpermute_rope"}
"""Ops on weights alone: `fold` moves them to conversion time, where the reference runs them."""


def test_every_op_is_lowered_or_acts_on_weights_alone():
    assert {name for name, target in _LOWERINGS if target == "cpu"} == set(OPS) - WEIGHT_ONLY


def test_an_op_without_a_lowering_is_named():
    graph = verify(parse_graph("graph g(%x: f32[n, 4]) {\n  %0: f32[n, 4] = tanh(%x)\n  return %0\n}"))
    lowering = CpuLowering(graph, host_isa())
    lowering.target = "abacus"
    with pytest.raises(NoLowering, match="no 'abacus' lowering for op 'tanh' \\(have: cpu\\)"):
        lowering.run()


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
@pytest.mark.parametrize("weights", [None, "q4_g32", "q6_g16_i8", "q8_g32"])
def test_each_number_of_rows_has_one_family_of_products(isa: Isa, weights: str | None) -> None:
    ranges = [(low, high) for _, low, high in families(isa, parse_format(weights) if weights else None)]
    few = 32 if isa.name in ("avx2", "avx_vnni") and weights == "q8_g32" else 16
    assert ranges == [(1, 1), (2, few), (few + 1, MANY)]


def run(graph: Graph, feeds: dict[str, np.ndarray], symbols: dict[str, int]) -> list[np.ndarray]:
    """The graph compiled for this machine."""
    program, kernels = lower(graph, host_isa(), symbols)
    memory = {}
    for value in graph.inputs:
        assert not isinstance(value.type, State)
        array = feeds[value.name]
        memory["input", value.name] = allocate(max(array.nbytes, 64)).view(array.dtype)[: array.size]
        memory["input", value.name][:] = array.reshape(-1)
    expected = evaluate(graph, feeds, lambda name: None)
    for i, array in enumerate(expected):
        memory["output", str(i)] = allocate(max(array.nbytes, 64)).view(array.dtype)
        memory["output", str(i)].view(np.uint8)[:] = 0xFF
    Executor(program, compile_program(kernels, host_isa()), memory, threads=1).step(symbols)
    return [memory["output", str(i)][: a.size].reshape(a.shape) for i, a in enumerate(expected)]


@pytest.mark.parametrize("rows", [1, 3, 18])
def test_joining_casting_and_dividing(rows):
    n = sym("n")
    a, b = Value(Tensor((n, 33), "f32"), "a"), Value(Tensor((5, 33), "f32"), "b")
    with Builder().active() as builder:
        joined = o.concat(a, b, a)
        ratio = o.div(a, o.add(a, a))
        half = o.cast(joined, dtype="f16")
        cut = o.columns(joined, start=7, stop=20)
    graph = verify(Graph("g", (a, b), tuple(builder.nodes), (joined, ratio, half, cut)))
    random = np.random.default_rng(rows)
    feeds = {"a": random.standard_normal((rows, 33), np.float32), "b": random.standard_normal((5, 33), np.float32)}
    for ours, expected in zip(run(graph, feeds, {"n": rows}), evaluate(graph, feeds, lambda name: None), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (lambda x: o.swiglu(x), ["swiglu+quantize_rows"]),
        (lambda x: o.tanh(x), ["tanh+quantize_rows"]),
        (lambda x: x, ["quantize_rows"]),
    ],
)
def test_what_feeds_a_quantized_product_is_quantized_by_the_call_that_made_it(make, calls):
    n = sym("n")
    x = Value(Tensor((n, 64), "f32"), "x")
    with Builder().active() as builder:
        made = make(x)
        w = o.constant(name="w", shape=(16, made.tensor.shape[1]), dtype="q8_g32", layout="r8k4")
        y = o.linear(o.quantize_rows(made, group=32), w)
    graph = verify(Graph("g", (x,), tuple(builder.nodes), (y,)))
    program, kernels = lower(graph, host_isa(), {"n": 5})
    assert [c.op for c in program.calls if "quantize_rows" in c.op] == calls
    assert {k.name for k in kernels} == {c.kernel for c in program.calls}
