"""Moving numbers without changing them."""

from __future__ import annotations

from ..op import op, require
from ..types import Dim, Tensor


@op
def embed(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids] as f32: any format [vocab, d], i32[...] -> f32[..., d]."""
    fits = table.is_weight and len(table.shape) == 2 and ids.dtype == "i32"
    require(fits, f"embed needs table[vocab, d] and i32 ids, got {table}, {ids}")
    return Tensor((*ids.shape, table.shape[-1]), "f32")


@op
def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows]: [n, ...], i32[r] -> [r, ...]."""
    require(x.is_plain, f"take_rows cannot cut {x}")
    require(rows.dtype == "i32" and len(rows.shape) == 1, f"take_rows needs i32[r], got {rows}")
    return Tensor((*rows.shape, *x.shape[1:]), x.dtype)


@op
def concat(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """The operands one after the other along the first axis."""
    parts = [t for t in (a, b, c) if t is not None]
    require(a.is_weight or a.is_plain, f"cannot concat {a}")
    same = all((t.shape[1:], t.dtype, t.layout) == (a.shape[1:], a.dtype, a.layout) for t in parts)
    require(same and not a.layout, f"concat needs unpacked tensors alike but for the first axis, got {a}, {b}, {c}")
    first: Dim = sum((t.shape[0] for t in parts), start=0)
    return Tensor((first, *a.shape[1:]), a.dtype)


@op
def columns(x: Tensor, *, start: int, stop: int) -> Tensor:
    """x[..., start:stop]."""
    width = x.shape[-1]
    require(x.is_plain, f"columns cannot cut {x}")
    require(isinstance(width, int) and 0 <= start < stop <= width, f"columns {start}:{stop} do not lie within {x}")
    return Tensor((*x.shape[:-1], stop - start), x.dtype)


@op
def split_heads(x: Tensor, *, heads: int) -> Tensor:
    """[..., heads * d] -> [..., heads, d]."""
    *lead, width = x.shape
    require(x.is_plain, f"split_heads cannot cut {x}")
    require(isinstance(width, int) and heads > 0 and width % heads == 0, f"cannot split {x} into {heads} heads")
    assert isinstance(width, int)
    return Tensor((*lead, heads, width // heads), x.dtype)


@op
def merge_heads(x: Tensor) -> Tensor:
    """[..., heads, d] -> [..., heads * d]."""
    require(x.is_plain, f"merge_heads cannot move {x}")
    require(len(x.shape) >= 2 and isinstance(x.shape[-1], int), f"merge_heads needs [..., heads, d], got {x}")
    *lead, heads, width = x.shape
    assert isinstance(width, int)
    return Tensor((*lead, heads * width), x.dtype)


@op
def prepend_row(x: Tensor, row: Tensor) -> Tensor:
    """`row` before the rows of every batch item: f32[b, t, d], f32[d] -> f32[b, t+1, d]."""
    require(len(x.shape) == 3 and row.shape == x.shape[-1:], f"prepend_row needs [b, t, d] and [d], got {x} and {row}")
    require(x.dtype == row.dtype == "f32", f"prepend_row works on f32, got {x} and {row}")
    batch, rows, width = x.shape
    return Tensor((batch, rows + 1, width), x.dtype)


@op
def take_token(x: Tensor, *, index: int) -> Tensor:
    """x[:, index]: [b, t, d] -> [b, d]."""
    require(x.is_plain and len(x.shape) == 3, f"take_token needs [b, t, d], got {x}")
    require(index >= 0, f"take_token needs index >= 0, got {index}")
    require(not isinstance(x.shape[1], int) or index < x.shape[1], f"take_token: {x} has no row {index}")
    return Tensor((x.shape[0], x.shape[2]), x.dtype)


@op
def mean_rows(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The mean over t of [b, t, d] -> [b, d]; with lengths i32[b], over the first lengths[b] rows."""
    require(len(x.shape) == 3 and x.dtype == "f32", f"mean_rows needs f32[b, t, d], got {x}")
    require(lengths is None or lengths == Tensor(x.shape[:1], "i32"), f"mean_rows lengths {lengths} do not match {x}")
    return Tensor((x.shape[0], x.shape[2]), x.dtype)
