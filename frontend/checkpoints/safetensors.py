"""Safetensors: one file, or shards named by model.safetensors.index.json.

The format is 8 bytes of header length, a JSON header, then the data of all tensors without a gap
(https://github.com/huggingface/safetensors#format). Nothing in a header is believed before it is checked against the
size of the file.
"""

from __future__ import annotations

import json
from typing import Any

from mlc.errors import BadCheckpoint, UnsupportedModel

from .reader import DTYPES, MappedFile, TensorInfo, check_overlap, check_shape, count_elements
from .shards import Contents, FileFormat, Place

MAX_HEADER = 100_000_000  # bytes, the limit of the format's own library

_NAMES = {name.upper(): name for name in DTYPES}  # F32 -> f32


def _read(file: MappedFile) -> Contents:
    start, header = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadCheckpoint(f"{file.path}: __metadata__ must map names to strings; the file is damaged")
    tensors = {}
    extents = []
    for name, entry in header.items():
        info, begin, end = _entry(file, name, entry, file.size - start)
        tensors[name] = info, Place(file, start + begin)
        extents.append((begin, end, name))
    check_overlap(str(file.path), extents)
    used = sum(end - begin for begin, end, _ in extents)
    if used != file.size - start:
        raise BadCheckpoint(
            f"{file.path} holds {file.size - start} bytes of data, its tensors take {used}; "
            "the file is truncated or damaged: download it again"
        )
    return Contents(tensors, metadata)


def _header(file: MappedFile) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the parsed header."""
    if file.size < 8:
        raise BadCheckpoint(f"{file.path} has {file.size} bytes; a safetensors file has at least 8")
    length = int.from_bytes(file.data[:8], "little")
    if length > min(MAX_HEADER, file.size - 8):
        raise BadCheckpoint(
            f"{file.path} says that its header has {length} bytes, the file has {file.size}; it is truncated or "
            "no safetensors file: download it again"
        )
    text = file.data[8 : 8 + length]
    if text[:1] != b"{":
        raise BadCheckpoint(f"{file.path}: the header is no JSON object; is this a safetensors file?")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{file.path}: the header is not readable: {error}") from None
    assert isinstance(header, dict)  # it begins with a brace
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are distinct. Raises ValueError, as the JSON parser does."""
    table = dict[str, Any]()
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key[:120]!r} is there twice")
        table[key] = value
    return table


def _entry(file: MappedFile, name: str, entry: Any, data: int) -> tuple[TensorInfo, int, int]:
    """The tensor an entry of the header tells of and the extent of its bytes in the `data` bytes after the header."""
    place = f"{file.path}: tensor {name[:120]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadCheckpoint(f"{place} must have dtype, shape and data_offsets; the file is damaged")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise BadCheckpoint(f"{place} has a dtype, shape or data_offsets of the wrong type; the file is damaged")
    if dtype not in _NAMES:
        raise UnsupportedModel(f"{place} has dtype {dtype[:40]}; mlc reads {', '.join(_NAMES)}")
    info = TensorInfo(name, tuple(shape), _NAMES[dtype])
    check_shape(place, info.shape)
    begin, end = offsets
    size = count_elements(info.shape) * DTYPES[info.dtype].itemsize
    if not begin <= end <= data:
        raise BadCheckpoint(
            f"{place} lies at {begin}..{end} of {data} bytes; the file is truncated or damaged: download it again"
        )
    if end - begin != size:
        raise BadCheckpoint(f"{place} has {end - begin} bytes, its shape and dtype need {size}; the file is damaged")
    return info, begin, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


SAFETENSORS = FileFormat("model.safetensors", _read)
