"""Where chat templates run: jinja2's immutable sandbox, with every operation on data metered (see `meter`).

A template comes with a model from the internet, and its input from users. Jinja's sandbox keeps it from Python's
internals; it does not keep it from running forever or filling the memory. So the parsed template is rewritten before it
is compiled, such that loops, comparisons, slices, literals and output go through the meter, and only those filters,
methods and globals are there whose cost is known.
"""

from __future__ import annotations

import functools
import re
import string
import types
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .meter import CONTAINER, COPY, ELEMENT, METER, STEP

_MAX_BITS = 4096  # of an integer
_MAX_WIDTH = 1000  # of padding, indentation and digits

_FILTERS = (
    "abs attr capitalize count d default dictsort e escape first float format groupby indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum "
    "title trim truncate unique upper urlencode wordcount"
)
# filters and tests that do not look into the elements of what they are given; all others may
_SHALLOW = (
    "attr count d default first float int items last length list map reject rejectattr reverse select selectattr sum"
)
_SHALLOW_TESTS = (
    "boolean callable defined escaped false filter float integer iterable mapping none number sameas sequence string "
    "test true undefined"
)
_NUMERIC = ("abs", "round", "is divisibleby", "is even", "is odd")  # of a text they would make a format or a product
_STR_METHODS = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind "
    "rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    int: frozenset({"bit_length"}),
    float: frozenset({"is_integer"}),
}


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates, block and filter set as in transformers."""

    intercepted_binops = frozenset({"+", "*", "**", "%", "-", "/", "//"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], optimized=False)
        self.finalize = _finalize
        self.filters = {name: _metered(name, self.filters[name]) for name in _FILTERS.split()}
        self.filters |= {"_each": _each, "_step": _step, "_text": _concatenated}
        self.filters |= {"_made": _made, "_seen": _seen}
        self.tests = {name: _metered(f"is {name}", test) for name, test in self.tests.items()}
        known = ("range", "cycler", "joiner")
        self.globals = {name: self.globals[name] for name in known} | {"dict": _dict, "namespace": _Namespace}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Rewriter().visit(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = METER.get()
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(times, int):
                    meter.spend(ELEMENT * len(one) * max(0, times))
        if operator == "%" and isinstance(left, str):
            _check_percent(left)
            meter.spend(len(left) + left.count("%") * (_MAX_WIDTH + meter.weight(right)))
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, type(left)):
            meter.spend((1 if isinstance(left, str) else COPY) * (len(left) + len(right)))
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(1, right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise SecurityError(f"it computes with integers of more than {_MAX_BITS} bits")
        return meter.made(super().call_binop(context, operator, left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        METER.get().spend(STEP)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        METER.get().spend(STEP + METER.get().weight(argument))  # it is hashed, or named in an error
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.spend(STEP + ELEMENT * (len(args) + len(kwargs)))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, type):
            raise SecurityError(f"the class method {__obj.__name__} of {owner.__name__} is not allowed in templates")
        for kind, allowed in _METHODS.items():
            if isinstance(owner, kind):
                if __obj.__name__ not in allowed:
                    raise SecurityError(f"the method {__obj.__name__} of {kind.__name__} is not allowed in templates")
                args = tuple(_taken(arg) for arg in args)
                meter.spend(sum(map(meter.weight, kwargs.values())))
                _pay_method(__obj.__name__, owner, args)
                return meter.made(super().call(__context, __obj, *args, **kwargs))
        if isinstance(owner, jinja2.runtime.LoopContext):
            meter.spend(sum(map(meter.weight, args)))  # loop.changed compares them
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def metered(*args: Any, **kwargs: Any) -> str:
            fields = _check_format(value.__self__)
            largest = max((METER.get().weight(a) for a in (*args, *kwargs.values())), default=0)
            METER.get().spend(len(value.__self__) + fields * (_MAX_WIDTH + 4 * largest))
            return inner(*args, **kwargs)

        return metered


class _Rewriter(NodeTransformer):
    """Puts the meter into a parsed template. What it adds are calls of the filters whose names begin with `_`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        if node.test is not None:  # elements that fail the test never reach the body
            node.iter = _filter(node.iter, "_each")
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(None), "_step"), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_text")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(node.expr, "_seen")
        for operand in node.ops:
            operand.expr = _filter(operand.expr, "_seen")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_made") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_made")

    visit_Dict = visit_List

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _filter(node.key, "_seen")  # its hash looks at all of it
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_made") if node.ctx == "load" else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # goes through `finalize`, as constants do


def _filter(value: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


# what the rewritten template calls


@pass_context
def _finalize(_: Context, value: Any) -> str:
    return METER.get().text(value)


@pass_context
def _each(_: Context, values: Any) -> Iterator[Any]:
    return METER.get().counted(values)


@pass_context
def _step(_: Context, value: None) -> None:
    METER.get().spend(STEP)


@pass_context
def _concatenated(_: Context, parts: list[Any]) -> str:
    return "".join(map(METER.get().text, parts))


@pass_context
def _made(_: Context, value: Any) -> Any:
    return METER.get().made(value)


@pass_context
def _seen(_: Context, value: Any) -> Any:
    """A value that is compared or hashed, which may look at all of it."""
    METER.get().spend(STEP + METER.get().weight(value) // 8)
    return value


# filters, tests, methods and globals


def _metered(name: str, function: Any) -> Callable[..., Any]:
    """The filter `name`, or the test `is name`, paying for what it is given and makes. Keeps jinja's marks."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    kind = _SHALLOW_TESTS if name.startswith("is ") else _SHALLOW
    shallow = name.removeprefix("is ") in kind.split()

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = METER.get()  # there is none while a template is compiled, so nothing is computed then
        values = tuple(_taken(arg) for arg in args[first:])
        measure = meter.size if shallow else meter.weight
        meter.spend(STEP + sum(map(measure, values)) + sum(map(measure, kwargs.values())))
        _pay_filter(name, values, kwargs)
        return meter.made(function(*args[:first], *values, **kwargs))

    return metered


def _taken(value: Any) -> Any:
    """A generator's values as a list, paid for; anything else as it is."""
    return list(METER.get().counted(value)) if isinstance(value, types.GeneratorType) else value


def _pay_filter(name: str, values: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What a filter costs beyond the size of its arguments."""
    meter = METER.get()
    others = (*values[1:], *kwargs.values())
    if name in _NUMERIC and not isinstance(values[0], (int, float)):
        raise SecurityError(f"{name} is given a {type(values[0]).__name__}; it takes a number")
    longest = max((len(v) for v in others if isinstance(v, str)), default=0)
    match name:
        case "replace":
            text, old, new = (str(v) for v in (*values, kwargs.get("old", ""), kwargs.get("new", ""))[:3])
            meter.spend(text.count(old) * len(new))
        case "join":
            meter.spend(len(values[0]) * longest if hasattr(values[0], "__len__") else 0)
        case "indent" | "round":
            numbers = [abs(v) for v in others if isinstance(v, int)]
            if any(number > _MAX_WIDTH for number in numbers):
                raise SecurityError(f"the filter {name} is given a number above {_MAX_WIDTH}")
            meter.spend((str(values[0]).count("\n") + 1) * max([4, longest, *numbers]))
        case "format":
            _check_percent(str(values[0]))
            meter.spend(str(values[0]).count("%") * (_MAX_WIDTH + sum(map(meter.weight, others))))
        case "sum":
            if not all(isinstance(start, (int, float)) for start in (*values[2:], kwargs.get("start", 0))):
                raise SecurityError("the filter sum adds numbers")
        case "sort" | "dictsort" | "groupby" | "unique" | "string" | "escape" | "e" | "urlencode" | "list":
            meter.spend(ELEMENT * meter.weight(values[0]))


def _pay_method(name: str, owner: Any, args: tuple[Any, ...]) -> None:
    """What a method of a built-in type costs."""
    meter = METER.get()
    meter.spend(sum(map(meter.weight, args)) + meter.weight(owner) // 8)
    if not isinstance(owner, str):
        return
    if name in ("ljust", "rjust", "zfill") and isinstance(args[0], int):
        meter.spend(max(0, args[0]))
    elif name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        meter.spend(owner.count(args[0]) * len(args[1]))
    elif name == "join":
        meter.spend(len(owner) * (len(args[0]) if hasattr(args[0], "__len__") else 1))
    elif name in ("split", "rsplit", "splitlines"):
        pieces = owner.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(owner)
        meter.spend(CONTAINER * (pieces + 1))


_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")


def _check_percent(pattern: str) -> None:
    """Raises SecurityError for a %-format that pads without measure."""
    for match in _PERCENT.finditer(pattern):
        if any(width == "*" or len(width) > 3 for width in match.groups() if width):
            raise SecurityError(f"the format {match[0][:20]!r} has a width above {_MAX_WIDTH}")


def _check_format(pattern: str) -> int:
    """The number of fields of a str.format pattern. Raises SecurityError for one that pads without measure."""
    fields = 0
    for _, _, spec, _ in string.Formatter().parse(pattern):
        fields += spec is not None
        if spec and ("{" in spec or re.search(r"\d{4}", spec)):
            raise SecurityError(f"the format {spec[:20]!r} has a width above {_MAX_WIDTH}")
    return fields


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    METER.get().spend(sum(map(METER.get().weight, args)))
    return dict(*map(_taken, args), **kwargs)


class _Namespace(Namespace):
    """Jinja's namespace: without names that begin with an underscore, and with a text that shows nothing of it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that an attribute may be called self
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace may not hold the name {str(name)[:40]!r}")


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body
