"""TVM's C interface, called without TVM's Python package, which is the oracle here. That arrays arrive, every test of a
kernel shows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm_ffi

from mlc.backends.native import Function, global_function, load_function


def native(function: tvm_ffi.Function) -> Function:
    return Function(function.__chandle__(), function)


def test_arguments_arrive_and_results_come_back() -> None:
    seen: list[tuple[object, ...]] = []

    def note(*arguments: object) -> int:
        seen.append(arguments)
        return -(1 << 40)

    assert native(tvm_ffi.convert(note))(1 << 33, -1, "text: ä").bits == -(1 << 40)
    assert seen == [(1 << 33, -1, "text: ä")]


def test_the_last_arguments_may_change_from_call_to_call() -> None:
    seen: list[tuple[int, ...]] = []
    call = native(tvm_ffi.convert(lambda *numbers: seen.append(numbers))).bind(7, 0, 0)
    call(1, 2)
    call(3)
    assert seen == [(7, 1, 2), (7, 1, 3)]


def test_a_function_that_fails_says_why() -> None:
    def fail() -> None:
        raise ValueError("the reason")

    with pytest.raises(RuntimeError, match="ValueError: the reason"):
        native(tvm_ffi.convert(fail))()
    with pytest.raises(RuntimeError, match=r"TypeError: .*Expected 3 but got 1"):
        global_function("ffi.ModuleGetFunction")(1)


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no function mlc\.nothing"):
        global_function("mlc.nothing")
    library = Path(tvm_ffi.libinfo.find_libtvm_ffi())
    with pytest.raises(RuntimeError, match="no function mlc_run"):
        load_function(library, "mlc_run")
    (tmp_path / "module.so").write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(RuntimeError, match=r"module\.so"):
        load_function(tmp_path / "module.so", "mlc_run")
