"""The intermediate representation: types, ops, graphs, their text form and their laws."""

from . import ops
from .evaluate import evaluate
from .graph import Builder, Graph, Node
from .op import OPS, Attr, Op, emitting, op, require
from .parser import parse_graph
from .types import Affine, Dim, Format, State, Tensor, Type, parse_format, parse_type, sym
from .value import Value
from .verify import verify

__all__ = [
    "OPS",
    "Affine",
    "Attr",
    "Builder",
    "Dim",
    "Format",
    "Graph",
    "Node",
    "Op",
    "State",
    "Tensor",
    "Type",
    "Value",
    "emitting",
    "evaluate",
    "op",
    "ops",
    "parse_format",
    "parse_graph",
    "parse_type",
    "require",
    "sym",
    "verify",
]
