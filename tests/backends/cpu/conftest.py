"""Compiling one kernel and running it, for the tests of CPU kernels: here, under an emulator, or with a model of
instructions that this machine lacks.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "2")  # read when the pool starts; the walker needs as many as it is told
os.environ.setdefault("TVM_BIND_THREADS", "0")

import ctypes
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol
from unittest.mock import patch

import numpy as np
import pytest
import tvm_ffi

from mlc.backends.cpu import isa as isa_module
from mlc.backends.cpu.emit import bits, const, intrinsic, splat, vector
from mlc.backends.cpu.isa import ISAS, Isa, host_features, host_isa
from mlc.backends.cpu.kernel import Expr, Kernel
from mlc.backends.cpu.program import stride
from mlc.backends.cpu.sync import SYNC_WORDS
from mlc.backends.cpu.table import row
from mlc.backends.native import request_tiles
from mlc.backends.tvm.build import build, compile_program

GUARD = 256  # bytes after each buffer; 0xFF is NaN as a float
ALIGNMENT = 64
WIDTHS = ("avx512", "avx2", "neon")  # instruction sets whose vectors have 16, 8 and 4 lanes
Array = np.ndarray[Any, Any]


class RunKernel(Protocol):
    def __call__(
        self,
        kernel: Kernel,
        buffers: Mapping[str, Array | str],
        sizes: Mapping[str, int],
        *,
        outputs: Mapping[str, tuple[tuple[int, ...], Any]],
        isa: Isa = ...,
    ) -> dict[str, Array]: ...


class Memory:
    """Buffers in one piece of memory, each at a multiple of 64 bytes, a guard behind it, all of it 0xFF at first."""

    def __init__(self, raw: Array, base: int) -> None:
        """`raw` is u8[n]; the kernel sees its first byte at the address `base`."""
        self.raw, self.base, self._used = raw, base, 0
        raw[...] = 0xFF

    @staticmethod
    def size(arrays: int, bytes: int) -> int:
        """Bytes that hold so many arrays of so many bytes together."""
        return bytes + arrays * (GUARD + ALIGNMENT)

    def take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        array: Array = self.raw[self._used : self._used + size].view(dtype).reshape(shape)
        self._used += -(-(size + GUARD) // ALIGNMENT) * ALIGNMENT
        return array

    def offset(self, array: Array) -> int:
        return int(array.ctypes.data - self.raw.ctypes.data)

    def address(self, array: Array) -> int:
        return self.base + self.offset(array)

    def guard(self, array: Array) -> bytes:
        end = self.offset(array) + array.nbytes
        return self.raw[end : end + GUARD].tobytes()


class Here:
    """This process."""

    threads = int(os.environ["TVM_NUM_THREADS"])

    def compile(self, kernels: Sequence[Kernel], isa: Isa) -> Callable[..., Any]:
        return compile_program(kernels, isa)

    def memory(self, size: int) -> Memory:
        raw = np.empty(size + ALIGNMENT, np.uint8)
        raw = raw[-raw.ctypes.data % ALIGNMENT :]
        return Memory(raw, raw.ctypes.data)

    def run(
        self, compiled: Callable[..., Any], memory: Memory, table: Array, sizes: Array, sync: Array, threads: int
    ) -> None:
        compiled(table.reshape(-1), sizes, sync, 0, len(table), threads)


class Modelled(Here):
    """This process, byte products being done by arithmetic that every machine has, in the same vectors."""

    def features(self, isa: Isa) -> tuple[str, ...]:
        """What the compiler may use."""
        return host_isa().features

    def compile(self, kernels: Sequence[Kernel], isa: Isa) -> Callable[..., Any]:
        runs = replace(isa, mcpu=host_isa().mcpu, features=self.features(isa))
        # this machine has no registers to pin that are so wide
        with patch.object(isa_module, "intrinsic", modelled), patch.object(isa_module, "pin", lambda value: value):
            return compile_program(kernels, runs)


def modelled(dtype: str, name: str, *args: Expr) -> Expr:
    """What `emit.intrinsic` gives, with the meaning of Intel's manual (volume 2) in place of the byte products."""
    lanes = int(dtype.partition("x")[2] or 1)

    def parts(value: Expr, count: int, signed: bool) -> list[Expr]:
        """The parts of each int32 lane, as int32."""
        width = 32 // count
        whole = bits(vector("int32", lanes), value)
        top = [whole << splat(const(32 - width * (i + 1)), lanes) for i in range(count)]
        if not signed:
            top = [bits(vector("uint32", lanes), t) for t in top]
        down = splat(const(32 - width, "int32" if signed else "uint32"), lanes)
        return [bits(vector("int32", lanes), t >> down) for t in top]

    if "vpdpbusd" in name:
        total, unsigned, signed = args
        for a, b in zip(parts(unsigned, 4, False), parts(signed, 4, True), strict=True):
            total = total + a * b
        return total
    if "pmaddw.d" in name:
        low, high = (a * b for a, b in zip(parts(args[0], 2, True), parts(args[1], 2, True), strict=True))
        return low + high
    if "pmaddubs" in name:
        words, eight = vector("int16", lanes), splat(const(8, "int16"), lanes)
        a, b = (bits(words, value) for value in args)
        low = (a & splat(const(255, "int16"), lanes)) * ((b << eight) >> eight)
        high = bits(words, bits(vector("uint16", lanes), a) >> splat(const(8, "uint16"), lanes)) * (b >> eight)
        return intrinsic(words, "llvm.sadd.sat", low, high)
    assert "x86" not in name, f"no model of {name}"
    return intrinsic(dtype, name, *args)


class Emulated(Modelled):
    """The same, but the compiler makes AMX's instructions: this machine refuses each, and `amx.c` does it."""

    COMPILER = "gcc"

    def __init__(self, folder: Path) -> None:
        source, path = Path(__file__).with_name("amx.c"), folder / "amx.so"
        subprocess.run([self.COMPILER, "-O2", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
        self._library = ctypes.CDLL(str(path))
        assert not self._library.amx_begin()

    def features(self, isa: Isa) -> tuple[str, ...]:
        return (*super().features(isa), *(name for name in isa.features if name.startswith("amx-")))

    def products(self) -> int:
        """Products of tile registers so far."""
        return int(self._library.amx_products())


class Qemu:
    """64-bit ARM under qemu-user: a program of a kernel and `driver.c`, its memory a file that both sides map."""

    # Not always `max`, which has every extension: a kernel may use those of its target only.
    CPUS: ClassVar = {"aarch64": "cortex-a53", "neon": "neoverse-n1", "neon_i8mm": "max"}
    COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    BASE = 1 << 33  # where a kernel sees the file
    threads = 4

    def __init__(self, folder: Path) -> None:
        self._folder, self._programs = folder, 0
        source, self._driver = Path(__file__).with_name("driver.c"), folder / "driver.o"
        include = f"-I{tvm_ffi.libinfo.find_include_path()}"
        subprocess.run([self.COMPILER, "-O1", "-c", str(source), include, "-o", str(self._driver)], check=True)

    @classmethod
    def missing(cls) -> str:
        """The tools that are not installed."""
        return " and ".join(tool for tool in (cls.COMPILER, cls.EMULATOR) if not shutil.which(tool))

    def compile(self, kernels: Sequence[Kernel], isa: Isa) -> list[str]:
        """The command that runs the kernels."""
        self._programs += 1
        program = self._folder / f"{self._programs}-{isa.name}"
        build(kernels, isa).mod.write_to_file(f"{program}.o", "o")
        subprocess.run([self.COMPILER, "-static", str(self._driver), f"{program}.o", "-o", str(program)], check=True)
        return [self.EMULATOR, "-cpu", self.CPUS[isa.name], str(program)]

    def memory(self, size: int) -> Memory:
        return Memory(np.memmap(self._folder / "memory", np.uint8, "w+", shape=(size,)), self.BASE)

    def run(self, compiled: list[str], memory: Memory, table: Array, sizes: Array, sync: Array, threads: int) -> None:
        numbers = [self.BASE, threads, len(table)]
        for array in (table, sizes, sync):
            numbers += [memory.offset(array), array.size]
        command = [*compiled, str(self._folder / "memory"), *map(str, numbers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stderr}"


@pytest.fixture(scope="session")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Qemu | None:
    return None if Qemu.missing() else Qemu(tmp_path_factory.mktemp("qemu"))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated | None:
    """None where AMX is not emulated: this machine has it, or nothing that compiles `amx.c`."""
    here = host_isa().architecture == "x86_64" and sys.platform == "linux" and shutil.which(Emulated.COMPILER)
    return Emulated(tmp_path_factory.mktemp("amx")) if here and "amx-tile" not in host_features() else None


@pytest.fixture(scope="session")
def machines(qemu: Qemu | None, emulated: Emulated | None) -> dict[Isa, Here | Qemu]:
    """What runs each instruction set, the host's own (tuned for the CPU model) first."""
    host, features = host_isa(), host_features()
    found: dict[Isa, Here | Qemu] = {host: Here()}
    for isa in ISAS.values():
        if isa.name == host.name:
            continue
        if isa.architecture != host.architecture:
            if qemu is not None and isa.name in qemu.CPUS:
                found[isa] = qemu
        elif features.issuperset(isa.features):
            if isa.tiles:
                request_tiles()
            found[isa] = found[host]
        elif isa.tiles:
            if emulated is not None:
                found[isa] = emulated
        else:
            found[isa] = Modelled()
    return found


@pytest.fixture(scope="session")
def runnable(machines: dict[Isa, Here | Qemu]) -> list[Isa]:
    """The instruction sets that tests can run in one way or another, the host's own first."""
    return list(machines)


@pytest.fixture(params=["host", *(name for name in WIDTHS if name != host_isa().name)])
def isa(request: pytest.FixtureRequest, runnable: list[Isa]) -> Isa:
    """The host's instruction set, then one for each width of vectors."""
    name = request.param
    if name != "host" and ISAS[name] not in runnable:
        pytest.skip(f"{name} needs {Qemu.missing()}")
    return runnable[0] if name == "host" else ISAS[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take every third case of a test for an instruction set that is not the host's: compiling takes the time."""
    seen: Counter[object] = Counter()
    left_out = []
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        name = params.get("isa", params.get("name"))
        runs = isinstance(item, pytest.Function) and "machines" in item.fixturenames
        if runs and name in WIDTHS and not host_features().issuperset(ISAS[name].features):
            case = item.path, getattr(item, "originalname", ""), name
            left_out += [item] if seen[case] % 3 else []
            seen[case] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def run_kernel(machines: dict[Isa, Here | Qemu]) -> RunKernel:
    """Run a kernel with one thread at once and with two threads an item at a time; returns its outputs.

    `buffers` are its inputs by pointer name; a string names the buffer that the pointer shares. `outputs` gives shape
    and dtype of what it writes: filled with 0xFF bytes (NaN) before, or with the contents of `buffers` where the same
    name is in both. Fails when the two runs differ in a bit, when an input changed, or when a byte was written past the
    end of any buffer.
    """
    compiled: dict[tuple[Kernel, Isa], Any] = {}

    def run(
        kernel: Kernel,
        buffers: Mapping[str, Array | str],
        sizes: Mapping[str, int],
        *,
        outputs: Mapping[str, tuple[tuple[int, ...], Any]],
        isa: Isa = host_isa(),  # noqa: B008
    ) -> dict[str, Array]:
        machine = machines[isa]
        if (kernel, isa) not in compiled:
            compiled[kernel, isa] = machine.compile([kernel], isa)
        results = [
            _call(machine, compiled[kernel, isa], kernel, buffers, sizes, outputs, threads) for threads in (1, 2)
        ]
        for name, one in results[0].items():
            assert one.tobytes() == results[1][name].tobytes(), f"{name} differs between one thread and two"
        return results[0]

    return run


def _call(
    machine: Here | Qemu,
    compiled: Any,
    kernel: Kernel,
    buffers: Mapping[str, Array | str],
    sizes: Mapping[str, int],
    outputs: Mapping[str, tuple[tuple[int, ...], Any]],
    threads: int,
) -> dict[str, Array]:
    inputs = {name: array for name, array in buffers.items() if not isinstance(array, str)}
    shapes = {name: (array.shape, array.dtype) for name, array in inputs.items()}
    shapes |= {name: of for name, of in outputs.items() if name not in shapes}
    if kernel.scratch:
        shapes["scratch"] = (kernel.scratch * threads,), np.dtype(np.uint8)
    words = stride([kernel])
    own = [((1, words), np.int64), ((max(1, len(kernel.sizes)),), np.int32), ((SYNC_WORDS,), np.int32)]
    total = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in (*shapes.values(), *own))
    memory = machine.memory(Memory.size(len(shapes) + len(own), total))
    table, slots, sync = (memory.take(*of) for of in own)
    arrays = {name: memory.take(*of) for name, of in shapes.items()}
    for name, array in inputs.items():
        arrays[name][...] = array
    arrays |= {name: arrays[other] for name, other in buffers.items() if isinstance(other, str)}
    missing = [p.name for p in kernel.pointers if p.name not in arrays]
    assert not missing, f"no buffer for {missing} of {kernel.name}"
    pointers = [memory.address(arrays[p.name]) for p in kernel.pointers]
    table[0] = row(0, 1, (0, -1 << 31, 1 << 31), pointers, range(len(kernel.sizes)), words)
    slots[: len(kernel.sizes)] = [sizes[name] for name in kernel.sizes]
    sync[...] = 0
    machine.run(compiled, memory, table, slots, sync, threads)
    for name, array in arrays.items():
        assert memory.guard(array) == b"\xff" * GUARD, f"{kernel.name} wrote past the end of {name}"
        if name in inputs and name not in outputs:
            assert array.tobytes() == np.ascontiguousarray(inputs[name]).tobytes(), f"{kernel.name} changed {name}"
    return {name: np.array(arrays[name]) for name in outputs}
