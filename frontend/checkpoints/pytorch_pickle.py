"""The pickle inside a PyTorch checkpoint, read as data.

A pickle is a program for a stack machine that may call whatever it names. `pickletools.genops` takes it apart and runs
nothing; the machine here knows the operations that a dict of tensors needs, and the three functions that `torch.save`
calls in one. Those are not called either: their arguments are kept. Everything else is refused by its name.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlc.errors import BadCheckpoint

from .reader import listed

CONVERT = (
    "convert it to safetensors once: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) "
    "in transformers"
)

MAX_OPERATIONS = 1 << 21  # a tensor takes 36
MAX_MEMO = 1 << 20  # a tensor takes 9
MAX_TENSORS = 1 << 16
MAX_STACK = 1 << 14  # pickle fills dicts in batches of 1000 entries


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers beside the pickle, in the file called `key`."""

    dtype: str  # as in `reader.DTYPES`, or a torch dtype that mlc does not read
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage, offset and strides in elements. Nothing is proved but that these are integers >= 0."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(data: bytes, place: str) -> Any:
    """What the pickle `data` describes: dicts, tuples, strings, numbers, bools, None, `Storage`s, `StoredTensor`s.

    Raises BadCheckpoint, which calls the pickle `place`. What it returns may be nested without end: do not recurse.
    """
    machine = _Machine(place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of genops, about escapes in text
            for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
                if count == MAX_OPERATIONS:
                    raise machine.damaged(f"it has more than {MAX_OPERATIONS} operations")
                machine.step(operation.name, argument)
    except ValueError as error:  # of genops
        raise machine.damaged(str(error)[:200]) from None
    return machine.pop(1)[0]


_STORAGES = {
    "torch.FloatStorage": "f32", "torch.HalfStorage": "f16", "torch.BFloat16Storage": "bf16",
    "torch.CharStorage": "i8", "torch.ByteStorage": "u8", "torch.IntStorage": "i32", "torch.LongStorage": "i64",
    "torch.BoolStorage": "bool", "torch.DoubleStorage": "f64", "torch.ShortStorage": "i16",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(
    {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class _Global:
    """Something the pickle names and would call: one of `_STORAGES` or `_CALLS`."""

    name: str


class _Machine:
    def __init__(self, place: str) -> None:
        self.place = place
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.tensors = 0

    def step(self, name: str, argument: Any) -> None:
        """Do the operation that pickletools calls `name`."""
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._check_room()
                self.marks.append(len(self.stack))
            case "MEMOIZE":
                self._remember(len(self.memo))
            case "BINPUT" | "LONG_BINPUT":
                self._remember(argument)
            case "BINGET" | "LONG_BINGET":
                self._push(self._recall(argument))
            case "EMPTY_DICT":
                self._push({})
            case "TUPLE":
                self._push(tuple(self._pop_mark()))
            case "SETITEM":
                self._set_items(self.pop(2))
            case "SETITEMS":
                self._set_items(self._pop_mark())
            case "GLOBAL":
                self._push(self._global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, inner = self._pop_of(str, str)
                self._push(self._global(f"{module}.{inner}"))
            case "BINPERSID":
                self._push(self._storage(*self._pop_of(tuple)))
            case "REDUCE":
                function, arguments = self._pop_of(_Global, tuple)
                self._push(self._call(function.name, arguments))
            case "BUILD":  # an OrderedDict's attributes: the versions of torch's modules
                self._pop_of(dict)
                self._expect(self.stack[-1] if self.stack else None, dict)
            case _ if name in _TUPLES:
                self._push(tuple(self.pop(_TUPLES[name])))
            case _ if name in _CONSTANTS:
                self._push(_CONSTANTS[name])
            case _ if name in _LITERALS:
                self._push(self._literal(argument))
            case _:
                raise self._refused(f"the pickle operation {name}")

    def damaged(self, why: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self.place}: {why}; the file is damaged: download it again")

    def _refused(self, what: str) -> BadCheckpoint:
        return BadCheckpoint(
            f"{self.place} uses {listed([what])}; mlc reads dicts of tensors and runs nothing that a checkpoint names: "
            f"if you trust its source, {CONVERT}"
        )

    def pop(self, count: int) -> list[Any]:
        """The topmost `count` values, the last pushed last."""
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise self.damaged("an operation lacks its operands")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _pop_of(self, *kinds: type) -> list[Any]:
        values = self.pop(len(kinds))
        for value, kind in zip(values, kinds, strict=True):
            self._expect(value, kind)
        return values

    def _expect(self, value: Any, kind: type) -> None:
        if type(value) is not kind:
            raise self.damaged(f"an operation got a {_kind(type(value))} for a {_kind(kind)}")

    def _pop_mark(self) -> list[Any]:
        if not self.marks:
            raise self.damaged("an operation lacks its mark")
        values = self.stack[self.marks[-1] :]
        del self.stack[self.marks.pop() :]
        return values

    def _push(self, value: Any) -> None:
        self._check_room()
        self.stack.append(value)

    def _check_room(self) -> None:
        if len(self.stack) + len(self.marks) >= MAX_STACK:
            raise self.damaged(f"its stack holds more than {MAX_STACK} values")

    def _remember(self, key: int) -> None:
        if len(self.memo) >= MAX_MEMO:
            raise self.damaged(f"its memo holds more than {MAX_MEMO} values")
        self.memo[key] = self.pop(1)[0]
        self.stack.append(self.memo[key])

    def _recall(self, key: int) -> Any:
        if key not in self.memo:
            raise self.damaged(f"it recalls value {key}, which it never stored")
        return self.memo[key]

    def _literal(self, value: Any) -> Any:
        if type(value) is int and not -(1 << 63) <= value < 1 << 63:
            raise self.damaged("it has an integer of more than 64 bits")
        return value

    def _set_items(self, items: list[Any]) -> None:
        """Keys and values in turn, into the dict that is topmost."""
        table = self.pop(1)[0]
        self._expect(table, dict)
        if len(items) % 2:
            raise self.damaged("a dict has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._expect(key, str)
            if key in table:
                raise self.damaged(f"a dict has the key {key[:80]!r} twice")
            table[key] = value
        self.stack.append(table)

    def _global(self, name: str) -> _Global:
        if name not in _STORAGES and name not in _CALLS:
            raise self._refused(name)
        return _Global(name)

    def _storage(self, identity: tuple[Any, ...]) -> Storage:
        if _kinds(identity) != (str, _Global, str, str, int) or identity[0] != "storage":
            raise self.damaged("a persistent id is no ('storage', type, key, location, count)")
        _, kind, key, _, numel = identity
        if kind.name not in _STORAGES or numel < 0:
            raise self.damaged(f"the storage {key[:80]!r} has {numel} elements of type {kind.name}")
        return Storage(_STORAGES[kind.name], key, numel)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name not in _CALLS:
            raise self._refused(f"a call of {name}")
        result = _CALLS[name](arguments)
        if result is None:
            raise self.damaged(f"{name} has arguments that mlc does not know")
        if isinstance(result, StoredTensor):
            self.tensors += 1
            if self.tensors > MAX_TENSORS:
                raise self.damaged(f"it has more than {MAX_TENSORS} tensors")
        return result


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any] | None:
    return None if arguments else {}


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor | None:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)`."""
    if _kinds(arguments[:6]) != (Storage, int, tuple, tuple, bool, dict) or arguments[6:] not in ((), (None,)):
        return None
    storage, offset, shape, strides, _, hooks = arguments[:6]
    sizes = (offset, *shape, *strides)
    if hooks or len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in sizes):
        return None
    return StoredTensor(storage, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor | None:
    """`torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`."""
    known = _kinds(arguments) == (StoredTensor, bool, dict) and not arguments[2]
    return arguments[0] if known else None


# What the functions give that a pickle may call; None where the arguments are not those that torch.save writes.
_CALLS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


def _kinds(values: tuple[Any, ...]) -> tuple[type, ...]:
    return tuple(type(value) for value in values)


def _kind(kind: type) -> str:
    return kind.__name__.strip("_")
