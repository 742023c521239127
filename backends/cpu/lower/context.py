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

    def maker(self, value: Value) -> Kernel | None:
        """The kernel of the last call, if that made `value`."""
        kernel = self.kernels[self.calls[-1].kernel] if self.calls else None
        made = kernel and [r for p, r in zip(kernel.pointers, self.calls[-1].pointers, strict=True) if p.name == "y"]
        return kernel if made == [self.ref(value)] else None

    def join(self, node: Node, kernel: Kernel, more: dict[str, Ref]) -> None:
        """Put `kernel` in the place of the last call's, to do what `node` says as well, at the pointers `more`."""
        last = self.calls.pop()
        before = self.kernels[last.kernel]
        pointers = dict(zip((p.name for p in before.pointers), last.pointers, strict=True)) | more
        sizes = dict(zip(before.sizes, last.sizes, strict=True))
        self.call(f"{last.op}+{node.op.name}", kernel, pointers, sizes, last.guard)
        if all(call.kernel != before.name for call in self.calls):
            del self.kernels[before.name]

    def named(self, node: Node, *names: str) -> dict[str, Ref]:
        """Where the operands lie, by the names the kernel has for them."""
        return {name: self.ref(value) for name, value in zip(names, node.inputs, strict=False)}


def width(value: Value) -> int:
    """The length of a row."""
    return fixed(value.tensor.shape[-1])
