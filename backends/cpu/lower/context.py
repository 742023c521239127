"""What all lowerings to a CPU share."""

from __future__ import annotations

from mlc.ir import Graph, Node, Value

from ...lowering import Lowering, fixed
from ...program import Ref, Size
from ..isa import Isa
from ..kernel import Kernel

PAGE = 32  # tokens of a KV page
TILE_ROWS = 16  # rows that the attention kernel for many rows takes together
MANY = (1 << 31) - 1
TIR = {"f32": "float32", "f16": "float16", "bf16": "uint16", "i32": "int32"}


class CpuLowering(Lowering):
    """A graph being lowered for one instruction set."""

    def __init__(self, graph: Graph, isa: Isa) -> None:
        super().__init__(graph, "cpu")
        self.isa = isa

    def row_call(self, node: Node, kernel: Kernel, pointers: dict[str, Ref], rows: Size, **sizes: Size) -> None:
        """A call for a number of rows."""
        self.call(node.op.name, kernel, pointers, {"rows": rows, **sizes})

    def named(self, node: Node, *names: str) -> dict[str, Ref]:
        """Where the operands lie, by the names the kernel has for them."""
        return {name: self.ref(value) for name, value in zip(names, node.inputs, strict=False)}


def width(value: Value) -> int:
    """The length of a row."""
    return fixed(value.tensor.shape[-1])
