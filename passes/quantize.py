"""Weight quantization, and integer activations for the products with quantized weights.

`quantize` nodes act on weights alone, so `fold` moves them to conversion time; `quantize_rows` nodes stay in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc.ir import Builder, Format, Graph, Value, parse_format, verify
from mlc.ir import ops as o

from .constants import constant_values
from .rewrite import rebuild

SCHEMES = {"q4": "q4_g32", "q4a": "q4a_g32", "q6": "q6_g32", "q8": "q8_g32", "q8a": "q8a_g32"}


@dataclass(frozen=True, slots=True)
class Quantize:
    """Round the weights of every product and the embedding table.

    `linear` is the format of the weights; `edge` that of the embedding table and of the product that reads the same
    table or makes the logits; None leaves them as they are. A weight whose width is no multiple of the group stays as
    it is, too. One that the checkpoint stores quantized is rounded again where that leaves it fewer bits.
    """

    linear: str | None = "q4_g32"
    edge: str | None = "q8_g32"

    def __call__(self, graph: Graph) -> Graph:
        constant, producers = constant_values(graph), graph.producers()
        tables = {n.inputs[0] for n in graph.nodes if n.op.name == "embed"}
        logits = graph.outputs[0]
        substitute: dict[Value, Value] = {}
        made: dict[Value, Value] = {}

        def quantized(w: Value, format: Format) -> Value:
            if w not in made:
                numbers = o.dequantize(w) if w.tensor.format else w
                made[w] = o.quantize(
                    numbers, bits=format.bits, group=format.group, symmetric=format.symmetric, scale=format.scale
                )
            return made[w]

        with Builder().active() as builder:
            for node in graph.nodes:
                if node.op.name not in ("linear", "embed"):
                    continue
                w = node.inputs[0] if node.op.name == "embed" else node.inputs[1]
                edge = w in tables or node.outputs[0] is logits
                wanted = self.edge if edge else self.linear
                width = w.tensor.shape[-1]
                if wanted is None or w not in constant or not isinstance(width, int):
                    continue
                format, stored = parse_format(wanted), w.tensor.format
                assert format is not None
                if width % format.width_unit or (stored and stored.bits <= format.bits):
                    continue
                if node.op.name == "embed":
                    new = o.embed(quantized(w, format), node.inputs[1])
                else:
                    new = o.linear(node.inputs[0], quantized(w, format), *node.inputs[2:])
                substitute[node.output] = new
        producers.update((v, n) for n in builder.nodes for v in n.outputs)
        return verify(rebuild(graph, producers, substitute))


def quantize_activations(graph: Graph) -> Graph:
    """Feed every product with a quantized weight int8 rows, so that its inner loop is integer arithmetic."""
    producers = graph.producers()
    substitute: dict[Value, Value] = {}
    with Builder().active() as builder:
        for node in graph.nodes:
            if node.op.name != "linear" or node.inputs[0].tensor.dtype != "f32":
                continue
            if (format := node.inputs[1].tensor.format) is not None:
                rows = o.quantize_rows(node.inputs[0], group=format.group)
                substitute[node.output] = o.linear(rows, *node.inputs[1:])
    producers.update((v, n) for n in builder.nodes for v in n.outputs)
    return verify(rebuild(graph, producers, substitute))
