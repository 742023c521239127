"""PyTorch checkpoints (pytorch_model.bin), read without PyTorch and without unpickling.

Since 1.6, `torch.save` writes a zip archive without compression: `NAME/data.pkl`, a pickle that describes the tensors,
and one entry `NAME/data/KEY` for the numbers of each storage, little endian where `NAME/byteorder` says nothing else
(https://docs.pytorch.org/docs/stable/notes/serialization.html). Several tensors may be views of one storage.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlc.errors import BadCheckpoint, UnsupportedModel

from .pytorch_pickle import CONVERT, Storage, StoredTensor, read_pickle
from .reader import DTYPES, MappedFile, TensorInfo, check_overlap, check_shape, count_elements, listed, span
from .shards import Contents, FileFormat, Place

MAX_PICKLE = 32 << 20  # bytes of data.pkl; a tensor takes about 250
MAX_DIRECTORY = 16 << 20  # bytes of the archive's table of contents; an entry takes about 100
_LOCAL = struct.Struct("<4s22xHH")  # what stands before an entry's data: magic, length of the name, of the extra field
_WRAPPERS = ("state_dict", "model")  # what training frameworks put around the tensors, one level


def _read(file: MappedFile) -> Contents:
    entries = _entries(file)
    name = next(iter(entries)).partition("/")[0] if entries else ""  # as PyTorch does it
    if f"{name}/data.pkl" not in entries:
        raise BadCheckpoint(f"{file.path} is a zip archive without a data.pkl; is this a PyTorch checkpoint?")
    order = entries.get(f"{name}/byteorder")
    if order and order.bytes(16) != b"little":
        raise UnsupportedModel(f"{file.path} is big endian; mlc reads little-endian checkpoints")
    table = read_pickle(entries[f"{name}/data.pkl"].bytes(MAX_PICKLE), f"{file.path}: data.pkl")
    storages = {key.removeprefix(f"{name}/data/"): entry for key, entry in entries.items()}
    tensors: dict[str, tuple[TensorInfo, Place]] = {}
    used: dict[str, _Entry] = {}
    for key, value in _state(table, file).items():
        where = f"{file.path}: tensor {key[:120]!r}"
        if not isinstance(value, StoredTensor):
            raise BadCheckpoint(
                f"{where} is no tensor but a {type(value).__name__}; if you trust its source, {CONVERT}"
            )
        entry = used[value.storage.key] = _storage(where, value.storage, storages)
        tensors[key] = _tensor(where, key, value, entry)
    check_overlap(str(file.path), ((e.offset, e.offset + e.size, key) for key, e in used.items()))
    return Contents(tensors)


def _state(table: Any, file: MappedFile) -> dict[str, Any]:
    """The dict of tensors."""
    for wrapper in _WRAPPERS:
        if type(table) is dict and type(table.get(wrapper)) is dict:
            table = table[wrapper]
            break
    if type(table) is not dict:
        raise BadCheckpoint(f"{file.path} holds a {type(table).__name__}; expected a dict of tensors (a state dict)")
    return table


def _tensor(where: str, name: str, tensor: StoredTensor, entry: _Entry) -> tuple[TensorInfo, Place]:
    """Prove that the tensor lies inside its storage and that no two of its elements are one."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    check_shape(where, shape)
    last = tensor.offset + (span(shape, strides) if count_elements(shape) else 0)
    if last > storage.numel:
        raise BadCheckpoint(
            f"{where} reaches to element {last} of a storage of {storage.numel}; the file is damaged: download it again"
        )
    least = 1  # stride that keeps the elements of a dim apart
    for stride, dim in sorted((s, d) for s, d in zip(strides, shape, strict=True) if d > 1):
        if stride < least:
            raise BadCheckpoint(f"{where} has elements that share memory, as torch's expand makes them; {CONVERT}")
        least = stride * dim
    offset = entry.offset + tensor.offset * DTYPES[storage.dtype].itemsize
    place = Place(entry.file, offset, None if _contiguous(shape, strides) else strides)
    return TensorInfo(name, shape, storage.dtype), place


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether each element follows the one before it; the stride of a dim of one element does not matter."""
    return all(dim <= 1 or strides[i] == count_elements(shape[i + 1 :]) for i, dim in enumerate(shape))


def _storage(where: str, storage: Storage, entries: Mapping[str, _Entry]) -> _Entry:
    """The entry that holds the storage."""
    if storage.dtype not in DTYPES:
        raise UnsupportedModel(f"{where} has dtype {storage.dtype}; mlc reads {', '.join(DTYPES)}")
    entry = entries.get(storage.key)
    if entry is None:
        raise BadCheckpoint(f"{where} lies in {storage.key[:80]!r}, which the archive lacks; download it again")
    size = storage.numel * DTYPES[storage.dtype].itemsize
    if entry.size != size:
        raise BadCheckpoint(
            f"{where} lies in a storage of {entry.size} bytes, said to have {storage.numel} elements, so {size}; "
            "the file is damaged: download it again"
        )
    return entry


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where an entry's data lies, in bytes; inside the file."""

    file: MappedFile
    name: str
    offset: int
    size: int

    def bytes(self, limit: int) -> bytes:
        if self.size > limit:
            raise BadCheckpoint(f"{self.file.path}: {self.name} has {self.size} bytes; expected at most {limit}")
        return self.file.data[self.offset : self.offset + self.size]


def _entries(file: MappedFile) -> dict[str, _Entry]:
    """The archive's entries by name, in the order of the archive."""
    start = file.data[:4]
    if start[:1] == b"\x80":  # a bare pickle
        raise UnsupportedModel(f"{file.path} is in the format that PyTorch wrote before 1.6; {CONVERT}")
    if start != b"PK\x03\x04":
        raise BadCheckpoint(f"{file.path} is no zip archive, as torch.save writes; is this a PyTorch checkpoint?")
    try:
        with _Stream(file.path) as stream, zipfile.ZipFile(stream) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise BadCheckpoint(
            f"{file.path}: the table of contents is not readable: {str(error)[:200]}; "
            "the file is truncated or damaged: download it again"
        ) from None
    entries: dict[str, _Entry] = {}
    for info in infos:
        if info.filename in entries:
            raise BadCheckpoint(f"{file.path}: the entry {info.filename[:120]!r} is there twice; the file is damaged")
        entries[info.filename] = _entry(file, info)
    return entries


class _Stream(io.FileIO):
    """A file of which zipfile reads the end and a table of contents of limited size, whatever the file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        size = left if size is None or size < 0 else min(size, left)
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"it has {size} bytes, expected at most {MAX_DIRECTORY}")
        return super().read(size)


def _entry(file: MappedFile, info: zipfile.ZipInfo) -> _Entry:
    place = f"{file.path}: the entry {listed([info.filename])}"
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise BadCheckpoint(f"{place} is compressed or encrypted, which torch.save does not do; {CONVERT}")
    header = file.data[info.header_offset : info.header_offset + _LOCAL.size] if info.header_offset >= 0 else b""
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise BadCheckpoint(f"{place} is not where the table of contents says; the file is damaged: download it again")
    _, name, extra = _LOCAL.unpack(header)
    offset = info.header_offset + _LOCAL.size + name + extra
    if offset + info.file_size > file.size:
        raise BadCheckpoint(f"{place} ends after the file; it is truncated or damaged: download it again")
    return _Entry(file, info.filename, offset, info.file_size)


PYTORCH = FileFormat("pytorch_model.bin", _read)
