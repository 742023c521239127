"""What all lowerings to a CPU share."""

from __future__ import annotations

from mlc.ir import Graph, Node, Value

from ...lowering import Lowering, fixed
from ...program import Ref, Size
from ..attention import span_tokens
from ..choice import Choose, usual
from ..isa import Isa
from ..kernel import Kernel

PAGE = 64  # tokens of a KV page
SPAN = span_tokens(PAGE)
TILE = 48  # query vectors that the attention kernel for many rows takes together: whole register tiles
MANY = (1 << 31) - 1
TIR = {"f32": "float32", "f16": "float16", "bf16": "uint16", "i32": "int32", "q8": "int8"}


class CpuLowering(Lowering):
    """A graph being lowered for one instruction set."""

    def __init__(self, graph: Graph, isa: Isa, choose: Choose = usual) -> None:
        super().__init__(graph, "cpu")
        self.isa = isa
        self.choose = choose
        self.tile_rows = TILE  # of a sequence, in one tile of attention; less where a kv head has several query heads
        self.partial = 0  # bytes of a partial result of attention, all heads together

    def row_call(self, node: Node, kernel: Kernel, pointers: dict[str, Ref], rows: Size, **sizes: Size) -> None:
        """A call for a number of rows."""
        self.call(node.op.name, kernel, pointers, {"rows": rows, **sizes})

    def named(self, node: Node, *names: str) -> dict[str, Ref]:
        """Where the operands lie, by the names the kernel has for them."""
        return {name: self.ref(value) for name, value in zip(names, node.inputs, strict=False)}


def width(value: Value) -> int:
    """The length of a row."""
    return fixed(value.tensor.shape[-1])
