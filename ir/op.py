"""An op is one function from types to types.

Its positional parameters are the operands (optional ones default to None), its keyword-only parameters the attributes,
its docstring the semantics, its body the shape rule and its return the result types. Builder, printer, parser, verifier
and the op table all read that one definition.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints, overload

from mlc.errors import TypeMismatch

from .types import State, Tensor, Type
from .value import Value

Attr = int | float | str | bool | tuple[int, ...]
Result_co = TypeVar("Result_co", covariant=True)
Emit = Callable[["Op[Any]", tuple[Value, ...], Mapping[str, Attr]], tuple[Value, ...]]

_emit: ContextVar[Emit] = ContextVar("emit")


@contextmanager
def emitting(emit: Emit) -> Generator[None]:
    """Within, calling an op calls `emit(op, operands, attrs)`."""
    token = _emit.set(emit)
    try:
        yield
    finally:
        _emit.reset(token)


class Op(Generic[Result_co]):
    def __init__(self, rule: Callable[..., Any], family: str) -> None:
        self.name = rule.__name__
        self.family = family
        self.rule = rule
        self.doc = inspect.getdoc(rule) or ""
        parameters = inspect.signature(rule).parameters.values()
        hints = get_type_hints(rule)
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.operands = tuple(p.name for p in positional)
        self.kinds = tuple(State if hints[p.name] is State else Tensor for p in positional)
        self.required = sum(p.default is p.empty for p in positional)
        self.attrs = {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.defaults = {p.name: p.default for p in parameters if p.name in self.attrs and p.default is not p.empty}
        result = hints["return"]
        self.result_count = len(get_args(result)) if get_origin(result) is tuple else 1

    def infer(self, types: Sequence[Type], attrs: Mapping[str, Attr]) -> tuple[Type, ...]:
        """The result types for these operand types, or TypeMismatch."""
        if not self.required <= len(types) <= len(self.operands):
            raise TypeMismatch(f"{self.name} takes the operands ({', '.join(self.operands)}), got {len(types)}")
        for name, kind, type_ in zip(self.operands, self.kinds, types, strict=False):
            if not isinstance(type_, kind):
                raise TypeMismatch(f"{self.name}: {name} must be a {kind.__name__.lower()}, got {type_}")
            if isinstance(type_, Tensor) and not type_.shape:
                raise TypeMismatch(f"{self.name}: {name} is {type_}; tensors here have at least one dimension")
        if set(attrs) != set(self.attrs):
            wrong = sorted(set(attrs) ^ set(self.attrs))
            raise TypeMismatch(f"{self.name} takes the attributes {{{', '.join(self.attrs)}}}; see {', '.join(wrong)}")
        for name in self.attrs:
            check_attr(self.name, name, attrs[name], self.attrs[name])
        results: Any = self.rule(*types, **attrs)
        return results if self.result_count > 1 else (results,)

    def __call__(self, *operands: Value | None, **attrs: Attr) -> Result_co:
        """Emit a node into the active builder. Trailing operands may be None."""
        emit = _emit.get(None)
        assert emit is not None, f"{self.name} was called outside `with Builder().active():`"
        given = tuple(v for v in operands if v is not None)
        assert None not in operands[: len(given)], f"{self.name}: only trailing operands may be None"
        outputs: Any = emit(self, given, {**self.defaults, **attrs})
        result: Result_co = outputs if self.result_count > 1 else outputs[0]
        return result

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def check_attr(op: str, name: str, value: Attr, kind: Any) -> None:
    """Raise TypeMismatch unless `value` is of the annotated type of attribute `name`."""
    if get_origin(kind) is tuple:
        ok = isinstance(value, tuple) and all(type(v) is get_args(kind)[0] for v in value)
    else:
        ok = type(value) is kind and not (isinstance(value, float) and not math.isfinite(value))
    if not ok:
        expected = "a finite float" if kind is float else str(kind) if get_origin(kind) else kind.__name__
        raise TypeMismatch(f"{op}: attribute {name} must be {expected}, got {value!r}")


OPS: dict[str, Op[Any]] = {}


@overload
def op(rule: Callable[..., Type]) -> Op[Value]: ...
@overload
def op(rule: Callable[..., tuple[Type, Type]]) -> Op[tuple[Value, Value]]: ...
def op(rule: Callable[..., Any]) -> Op[Any]:
    """Register `rule` as an op. Its family is the module it stands in."""
    assert rule.__name__ not in OPS, f"op {rule.__name__!r} is defined twice"
    return OPS.setdefault(rule.__name__, Op(rule, rule.__module__.rpartition(".")[2]))


def require(ok: bool, message: str) -> None:
    if not ok:
        raise TypeMismatch(message)
