"""Weight conversion: runs the part of a graph that depends on weights alone, in row blocks, straight into the file.

Memory is bounded by the row blocks in flight, and by the tensors that an op needs whole; the results are written into a
memory map. Every op means what the numpy reference says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlc.ir import Graph, Node, Tensor, Value
from mlc.ir.arrays import QuantizedArray

from .layouts import pack, parse_layout
from .reference import REFERENCE
from .reference.parts import on_parts
from .weights_file import Entry, create

Array = np.ndarray[Any, Any]
Data = Array | QuantizedArray
Progress = Callable[[int, int], None]  # (bytes of weights done, bytes in all)

_BLOCK_BYTES = 16 << 20  # of f32, for one row block
_RELEASE_BYTES = 32 << 20  # of results, after which the pages of both files are given back
_ROW_WISE = frozenset({"cast", "quantize", "dequantize"})  # row i of the result needs row i of the operand alone


class Source(Protocol):
    """Where weights come from."""

    def rows(self, name: str, start: int, stop: int) -> Data:
        """Rows of the leading axis, in the dtype or quantized format that the graph's weight node names."""

    def release(self) -> None:
        """Give back the memory of what was read so far."""


def convert(graph: Graph, names: Sequence[str], source: Source, path: Path, progress: Progress | None = None) -> None:
    """Write output i of `graph`, which has no inputs, as the tensor `names[i]` of a new weights file at `path`.

    A packed output is written as its parts, `name.part`. `progress` is called as row blocks are done.
    """
    reader = _Reader(graph, source)
    entries: dict[str, Entry] = {}
    for name, value in zip(names, graph.outputs, strict=True):
        for part, array in reader.parts(value, 0, _first_rows(value.tensor)).items():
            entries[_join(name, part)] = Entry(_whole_shape(value.tensor, array), array.dtype)
    file = create(path, entries)
    views = file.views
    total = sum(e.bytes for e in entries.values())
    done = released = 0
    jobs = (
        (name, value, a, b) for name, value in zip(names, graph.outputs, strict=True) for a, b in _blocks(value.tensor)
    )

    def run(job: tuple[str, Value, int, int]) -> int:
        name, value, start, stop = job
        unit = parse_layout(value.tensor.layout).rows if value.tensor.layout else 1
        written = 0
        for part, array in reader.parts(value, start, stop).items():
            views[_join(name, part)][start // unit : start // unit + len(array)] = array
            written += array.nbytes
        return written

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for written in _bounded_map(pool, run, jobs):
            done += written
            if done - released > _RELEASE_BYTES:
                released = done
                source.release()
                file.release()
            if progress is not None:
                progress(done, total)


def _bounded_map(pool: ThreadPoolExecutor, run: Callable[[Any], int], jobs: Iterator[Any]) -> Iterator[int]:
    """`pool.map` that keeps only a few jobs in flight, so that memory stays bounded."""
    waiting = []
    for job in jobs:
        waiting.append(pool.submit(run, job))
        if len(waiting) > 4:
            yield waiting.pop(0).result()
    yield from (future.result() for future in waiting)


class _Reader:
    """Rows of any value of the conversion graph."""

    def __init__(self, graph: Graph, source: Source) -> None:
        self.producers = graph.producers()
        self.source = source

    def parts(self, value: Value, start: int, stop: int) -> dict[str, Array]:
        """What the file holds for rows [start, stop) of an output."""
        node = self.producers[value]
        if node.op.name == "pack":
            return pack(_bits(self.rows(node.inputs[0], start, stop)), parse_layout(value.tensor.layout))
        data = self.rows(value, start, stop)
        if isinstance(data, QuantizedArray):
            return data.parts
        bits = _bits(data)
        assert not isinstance(bits, QuantizedArray)
        return {"": bits}

    def rows(self, value: Value, start: int, stop: int) -> Data:
        node = self.producers[value]
        if node.op.name == "weight":
            return self.source.rows(str(node.attrs["name"]), start, stop)
        if node.op.name == "concat":
            return on_parts(
                lambda *parts: np.concatenate(parts), *(self.rows(*part) for part in _cut(node, start, stop))
            )
        if node.op.name in _ROW_WISE:
            result: Data = REFERENCE[node.op.name](self.rows(node.inputs[0], start, stop), **node.attrs)
            return result
        whole: Data = REFERENCE[node.op.name](*(self.rows(v, 0, _rows(v.tensor)) for v in node.inputs), **node.attrs)
        return on_parts(lambda part: part[start:stop], whole)


def _cut(node: Node, start: int, stop: int) -> Iterator[tuple[Value, int, int]]:
    """Which rows of which operands of a concat are rows [start, stop) of its result."""
    offset = 0
    for value in node.inputs:
        count = _rows(value.tensor)
        a, b = max(start - offset, 0), min(stop - offset, count)
        if a < b:
            yield value, a, b
        offset += count


def _bits(data: Data) -> Data:
    """bfloat16 as uint16; everything else as it is."""
    return data.view(np.uint16) if not isinstance(data, QuantizedArray) and data.dtype.name == "bfloat16" else data


def _rows(t: Tensor) -> int:
    rows = t.shape[0]
    assert isinstance(rows, int)
    return rows


def _first_rows(t: Tensor) -> int:
    return min(_rows(t), parse_layout(t.layout).rows) if t.layout else min(1, _rows(t))


def _whole_shape(t: Tensor, first: Array) -> tuple[int, ...]:
    """The shape of a part, given the part of the first row or row block."""
    count = parse_layout(t.layout).blocks(_rows(t)) if t.layout else _rows(t)
    return (count, *first.shape[1:])


def _blocks(t: Tensor) -> Iterator[tuple[int, int]]:
    """Row ranges of about _BLOCK_BYTES, each but the last a multiple of the layout's row block."""
    rows, unit = _rows(t), parse_layout(t.layout).rows if t.layout else 1
    width = int(np.prod([d for d in t.shape[1:] if isinstance(d, int)], dtype=np.int64))
    step = max(unit, _BLOCK_BYTES // (4 * max(width, 1)) // unit * unit)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if part else name
