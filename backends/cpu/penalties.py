"""What the tokens of a text make of the logits that follow it.

Each row has a list of tokens: how often the answer holds each (0: the prompt alone does, -1: neither), and its bias.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .emit import Registers, const, f32, let, load, splat, store
from .isa import Isa
from .kernel import Expr, Frame, Kernel, Pointer
from .sync import COUNTS, FREQUENCY, PENALTIES, PRESENCE, REPETITION
from .tiles import fold, kernel_name
from .vocabulary import all_rows, cell, start_of

_LIST = (
    Pointer("penalties", "float32"),
    Pointer("listed", "int32"),
    Pointer("ids", "int32"),
    Pointer("counts", "int32"),
    Pointer("biases", "float32"),
)
_SIZES = ("rows", "room")


def penalize(vocab: int) -> Kernel:
    """Apply penalties and biases to logits f32[rows, vocab], in place.

    Pointers logits, penalties f32[rows, PENALTIES] (see `sync`), listed i32[rows] (how long each list is), ids i32,
    counts i32 and biases f32 [rows, room]. Sizes rows, room.
    """

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            start, first = start_of(row, vocab), let(row * f["room"])
            repetition, frequency, presence = (
                let(f["penalties"][row * PENALTIES + field]) for field in (REPETITION, FREQUENCY, PRESENCE)
            )
            with T.serial(0, f["listed"][row]) as i:
                at, count = let(start + f["ids"][first + i]), let(f["counts"][first + i])
                x = let(f["logits"][at])
                repeated = let(tirx.Select(x > f32(0), x / repetition, x * repetition))
                seen = let(tirx.Select(count >= 0, repeated, x))
                often = let(let(frequency * count.astype("float32")) + presence)
                answered = let(tirx.Select(count > 0, seen - often, seen))
                store(f["logits"], at, answered + f["biases"][first + i], 1)

    pointers = (Pointer("logits", "float32"), *_LIST)
    return Kernel(kernel_name("penalize", vocab), pointers, _SIZES, all_rows, body, grain=1)


def remember(isa: Isa) -> Kernel:
    """Count the tokens that were chosen, in the lists of those rows whose COUNTS is not 0.

    Pointers as in `penalize`, chosen i32[rows] in place of logits. Sizes rows, room, a multiple of the lanes.
    """
    lanes = isa.lanes

    def body(f: Frame) -> None:
        with T.serial(f.lo, f.hi) as row:
            token = let(f["chosen"][row])
            with T.If(tirx.all(token >= 0, f["penalties"][row * PENALTIES + COUNTS] > f32(0))), T.Then():
                count(f, row, token)

    def count(f: Frame, row: Expr, token: Expr) -> None:
        first, listed, nearest = let(row * f["room"]), let(f["listed"][row]), Registers(1, "int32", lanes)
        nearest[0] = splat(listed, lanes)
        with T.serial(0, (listed + (lanes - 1)) // lanes) as i:
            ids, index = let(load(f["ids"], first + i * lanes, lanes)), let(tirx.Ramp(i * lanes, 1, lanes))
            found = let(tirx.Select(ids == splat(token, lanes), index, splat(listed, lanes)))
            nearest[0] = tirx.min(nearest[0], found)
        at = let(first + fold(nearest[0], lanes, tirx.min))
        known = let(at < first + listed)
        before, bias = cell("int32", const(0)), cell("float32", f32(0))
        with T.If(known), T.Then():
            before[0] = tirx.max(f["counts"][at], const(0))
            bias[0] = f["biases"][at]
        store(f["ids"], at, token, 1)
        store(f["counts"], at, before[0] + 1, 1)
        store(f["biases"], at, bias[0], 1)
        store(f["listed"], row, tirx.Select(known, listed, listed + 1), 1)

    pointers = (Pointer("chosen", "int32"), *_LIST)
    return Kernel("remember", pointers, _SIZES, all_rows, body, grain=1)
