"""The calls behind the head of a language model: from logits to tokens, and from one step to the next."""

from __future__ import annotations

from ...lowering import size_of
from ...program import ADVANCE, Guard, Ref
from ..penalties import penalize, remember
from ..sample import advance, draw, kept_masses, most_probable, row_peaks, tally
from ..threshold import histogram, threshold
from ..vocabulary import STRIPS, Bins, blocks, parts
from .context import MANY, PAGE, CpuLowering, width


def lower_sampling(x: CpuLowering) -> None:
    """Emit the calls that choose a token for each row of the logits, then one that makes these the next step.

    The step's memory has `rules` and `draws` (see `cpu.sample`) and receives `chosen`. The size `draws` is 0 where all
    rows take the most probable token, `again` is 1 where several steps may be made, `penalized` where
    rows have `penalties` (see `cpu.penalties`).
    """
    vocab, rows = width(x.graph.outputs[0]), ("r",)
    of_blocks = size_of("r", blocks(vocab))
    memory = {
        "logits": Ref("output", "0"),
        "rules": Ref("step", "rules"),
        "draws": Ref("step", "draws"),
        "progress": Ref("step", "progress"),
        "tokens": Ref("step", "chosen"),
        "peaks": x.temporary(of_blocks, 4),
        "peak": x.temporary(rows, 4),
        "bins": x.temporary(size_of("r", parts(vocab), Bins.of(vocab).count), 8),
        "least": x.temporary(rows, 4),
        "last": x.temporary(rows, 4),
        "masses": x.temporary(of_blocks, 4),
        "strips": x.temporary(size_of("r", blocks(vocab) * STRIPS), 4),
    }
    lists = {name: Ref("step", name) for name in ("penalties", "listed", "ids", "counts", "biases")}
    penalized, of_lists = Guard(("penalized",), 1, 1), {"rows": rows, "room": ("room",)}
    x.call("sample", penalize(vocab), {"logits": memory["logits"], **lists}, of_lists, penalized)
    any_draws = Guard(("draws",), 1, MANY)
    for kernel, guard in (
        (row_peaks(vocab, x.isa), None),
        (most_probable(vocab), None),
        (histogram(vocab, x.isa), any_draws),
        (threshold(vocab, x.isa), any_draws),
        (kept_masses(vocab, x.isa), any_draws),
        (draw(vocab, x.isa), any_draws),
    ):
        names = [pointer.name for pointer in kernel.pointers if pointer.name != "scratch"]
        x.call("sample", kernel, {name: memory[name] for name in names}, {"rows": rows}, guard)
    x.call(ADVANCE, remember(x.isa), {"chosen": memory["tokens"], **lists}, of_lists, penalized)
    step = {
        name: Ref("step", name) for name in ("chosen", "slots", "tables", "members", "stops", "history", "progress")
    }
    step |= {name: Ref("input", name) for name in ("tokens", "positions")}
    sizes = {"rows": rows, "stride": ("table_stride",)}
    for kernel in (tally(x.isa), advance(PAGE)):
        pointers = {pointer.name: step[pointer.name] for pointer in kernel.pointers}
        x.call(ADVANCE, kernel, pointers, {name: sizes[name] for name in kernel.sizes}, Guard(("again",), 1, 1))
