"""The compiler from Python: build a graph, print it, read it back, rewrite it, run it."""

import numpy as np

from mlc.backends.reference import REFERENCE
from mlc.ir import Builder, Graph, Tensor, Value, evaluate, parse_graph, sym, verify
from mlc.ir import ops as o
from mlc.passes import fuse

n = sym("n")
x, residual = Value(Tensor((n, 4), "f32"), "x"), Value(Tensor((n, 4), "f32"), "residual")
with Builder().active() as builder:
    total = o.add(x, residual)
    scale = o.weight(name="norm", shape=(4,), dtype="f32")
    normed = o.rms_norm(total, scale, eps=1e-5)
before = verify(Graph("example", (x, residual), tuple(builder.nodes), (normed, total)))
print(before)

after = fuse(before)  # the sum and the norm become one op
print(after)
assert parse_graph(str(after)) == after  # the text is exact

rng = np.random.default_rng(0)
inputs = {name: rng.standard_normal((2, 4), dtype=np.float32) for name in ("x", "residual")}
weights = {"norm": np.ones(4, np.float32)}
for graph in (before, after):
    print(evaluate(graph, inputs, REFERENCE, weights.__getitem__)[0])  # what every op means, in numpy
