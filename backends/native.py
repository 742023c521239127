"""Native functions, called through the C interface of TVM's run-time library (`tvm/ffi/c_api.h` in apache-tvm-ffi).

Four C functions are all that running a compiled model needs; the Python package around them takes a tenth of a second
to import, and brings in PyTorch wherever that is installed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlc.errors import ArtifactError, WrongTarget

Array = np.ndarray[Any, Any]

_NONE, _INT, _TENSOR, _TEXT, _FUNCTION = 0, 1, 7, 8, 68  # TVMFFITypeIndex
_CPU = 1  # kDLCPU
_KINDS = {"i": 0, "u": 1, "f": 2}  # DLDataTypeCode, by numpy's kinds
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
_HEADER = 24  # bytes of TVMFFIObject, which precede what an object holds


class Value(ctypes.Structure):
    """An argument or a result: TVMFFIAny. `bits` is an integer, or the address of what `kind` says."""

    _fields_ = (("kind", ctypes.c_int32), ("padding", ctypes.c_uint32), ("bits", ctypes.c_int64))


class _Bytes(ctypes.Structure):
    """TVMFFIByteArray."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Tensor(ctypes.Structure):
    """DLTensor, of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("dims", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("width", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class Function:
    """A native function."""

    def __init__(self, handle: int, owner: object = None) -> None:
        """`handle` is the address of TVM's function object, which lives as long as `owner`, or for ever."""
        self._handle, self._owner = handle, owner

    def __call__(self, *arguments: Array | int | str | Value) -> Value:
        """Arrays are flat and contiguous. Raises RuntimeError with what the function says of its failure."""
        return self.bind(*arguments)()

    def bind(self, *arguments: Array | int | str | Value) -> Callable[..., Value]:
        """The call with these arguments, of which the last may be given anew each time, as integers."""
        return _Call(self._handle, arguments, (self, arguments))


class _Call:
    def __init__(self, handle: int, arguments: tuple[Array | int | str | Value, ...], kept: object) -> None:
        self._function, self._handle, self._kept = _library().TVMFFIFunctionCall, handle, kept
        self._memory: list[Any] = []  # what the values point to
        self._count = len(arguments)
        self._values = (Value * self._count)(*map(self._value, arguments))
        self._views = [self._values[i] for i in range(self._count)]
        self._result = Value()
        self._result_pointer = ctypes.byref(self._result)

    def __call__(self, *last: int) -> Value:
        for view, number in zip(self._views[self._count - len(last) :], last, strict=True):
            view.bits = number
        self._result.kind = _NONE
        if self._function(self._handle, self._values, self._count, self._result_pointer):
            raise RuntimeError(_raised())
        return self._result

    def _value(self, argument: Array | int | str | Value) -> Value:
        if isinstance(argument, Value):
            return argument
        if isinstance(argument, int):
            return Value(_INT, 0, argument)
        if isinstance(argument, str):
            text = ctypes.create_string_buffer(argument.encode())
            self._memory.append(text)
            return Value(_TEXT, 0, ctypes.addressof(text))
        tensor = _tensor(argument)
        self._memory.append(tensor)
        return Value(_TENSOR, 0, ctypes.addressof(tensor))


def _tensor(array: Array) -> _Tensor:
    assert array.ndim == 1 and array.flags.c_contiguous
    shape, strides = (ctypes.c_int64 * 1)(array.size), (ctypes.c_int64 * 1)(1)
    code, width = _KINDS[array.dtype.kind], 8 * array.itemsize
    return _Tensor(array.ctypes.data, (_CPU, 0), 1, code, width, 1, shape, strides, 0)


def global_function(name: str) -> Function:
    """A function that TVM's libraries registered. Raises RuntimeError where there is none."""
    text, handle = name.encode(), ctypes.c_void_p()
    data = ctypes.create_string_buffer(text)
    _library().TVMFFIFunctionGetGlobal(ctypes.byref(_Bytes(ctypes.addressof(data), len(text))), ctypes.byref(handle))
    if handle.value is None:
        raise RuntimeError(f"TVM has no function {name}")
    return Function(handle.value)


def load_function(path: Path, name: str) -> Function:
    """The function `name` of a compiled library, which stays loaded. Raises RuntimeError."""
    module = global_function("ffi.ModuleLoadFromFile")(str(path))
    found = global_function("ffi.ModuleGetFunction")(module, name, 0)
    if found.kind != _FUNCTION:
        raise RuntimeError(f"it has no function {name}")
    return Function(found.bits)


def request_tiles() -> None:
    """Ask Linux for AMX's tile registers, for this process and all its threads. Raises WrongTarget where it refuses."""
    if sys.platform != "linux":
        raise WrongTarget("AMX's tile registers are for Linux only; compile the model with --target avx512_vnni")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA):
        reason = os.strerror(ctypes.get_errno())
        raise WrongTarget(
            f"Linux does not let this process use AMX's tile registers ({reason}); compile the model with "
            "--target avx512_vnni"
        )


@cache
def may_use_tiles() -> bool:
    """Whether `request_tiles` succeeds."""
    try:
        request_tiles()
    except WrongTarget:
        return False
    return True


@cache
def _library() -> ctypes.CDLL:
    """libtvm_ffi, and libtvm_runtime, which has the threads. Raises ArtifactError where they are not installed."""
    library = _load("tvm_ffi", "apache-tvm-ffi")
    library.TVMFFIFunctionCall.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    library.TVMFFIErrorMoveFromRaised.restype = None
    library.TVMFFIObjectDecRef.argtypes = (ctypes.c_void_p,)
    _load("tvm", "apache-tvm", "tvm_runtime")
    return library


def _load(package: str, distribution: str, name: str = "") -> ctypes.CDLL:
    """A library of an installed package that is not imported. Kernels look for its symbols, so they are global."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ArtifactError(f"the package {distribution} is not installed; run `pip install mlc-engine` again")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    for suffix in ("so", "dylib"):
        path = folder / f"lib{name or package}.{suffix}"
        if path.exists():
            return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    raise ArtifactError(f"{folder} has no lib{name or package}; run `pip install --force-reinstall {distribution}`")


def _raised() -> str:
    """What the function that has just failed on this thread says, `KIND: MESSAGE`."""
    error, library = ctypes.c_void_p(), _library()
    library.TVMFFIErrorMoveFromRaised(ctypes.byref(error))
    if error.value is None:
        return "a native function failed and does not say why"
    cell = (_Bytes * 2).from_address(error.value + _HEADER)  # TVMFFIErrorCell begins with kind and message
    kind, message = (ctypes.string_at(part.data, part.size).decode(errors="replace") for part in cell)
    library.TVMFFIObjectDecRef(error)
    return f"{kind}: {message}"
