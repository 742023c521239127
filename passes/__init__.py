"""Passes: functions from a valid graph to a valid graph."""

from .clean import clean
from .fold import Folded, fold
from .fuse import fuse
from .memory import Interval, Plan, plan_memory
from .pack import Pack
from .pipeline import Pass, dump, run
from .quantize import SCHEMES, Quantize, quantize_activations
from .rewrite import Rule, rewrite, rule

__all__ = [
    "SCHEMES",
    "Folded",
    "Interval",
    "Pack",
    "Pass",
    "Plan",
    "Quantize",
    "Rule",
    "clean",
    "dump",
    "fold",
    "fuse",
    "plan_memory",
    "quantize_activations",
    "rewrite",
    "rule",
    "run",
]
