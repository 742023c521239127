from __future__ import annotations

import pytest

from mlc.backends.program import Call, Guard, Ref
from mlc.errors import InputError
from mlc.tools.show import call_lines, function, kernel_uses

CALLS = (
    Call("linear", "one", (Ref("arena", "", 64), Ref("weight", "w.q")), (("n",),), guard=Guard(("n",), 1, 1)),
    Call("linear", "few", (Ref("arena", "", 64), Ref("weight", "w.q")), (("n",),), guard=Guard(("n",), 2, 16)),
    Call(
        "linear", "many", tuple(Ref("step", "slots") for _ in range(9)), (), guard=Guard(("n", "3"), 17, (1 << 31) - 1)
    ),
    Call("add", "sum", (Ref("output", "0"),), (("n",),)),
    Call("linear", "one", (Ref("arena", "", 0), Ref("weight", "v.q")), (("n",),), guard=Guard(("n",), 1, 1)),
)

ASSEMBLY = """\
other:
\tretq
.Lfunc_end0:
\t.p2align\t4
scale_compute_:
.Lfunc_begin1:
\t.loc\t1 0 0
\t.cfi_startproc
\ttestl\t%ecx, %ecx
.Ltmp73:
\tjle\t.LBB1_2
.LBB1_1:
# %bb.0:
\t.p2align\t4
.LBB1_2:
\tretq
.Lfunc_end1:
\t.size\tscale_compute_, .Lfunc_end1-scale_compute_
"""


def test_calls_say_what_they_touch_and_when_they_are_made() -> None:
    lines = call_lines(CALLS)
    assert lines[0] == "0 linear: one(arena+64, weight w.q) if n = 1"
    assert lines[1].endswith(" if 2 <= n <= 16")
    assert lines[2].startswith("2 linear: many(step slots, ") and lines[2].endswith(") if n*3 >= 17")
    assert lines[3] == "3 add: sum(output 0)"


def test_kernels_are_listed_with_their_calls_even_those_nobody_calls() -> None:
    uses = kernel_uses(["sum", "one", "few", "many", "spare"], CALLS)
    assert [(u.name, u.ops, u.calls, u.when) for u in uses] == [
        ("sum", ("add",), 1, "always"),
        ("one", ("linear",), 2, "n = 1"),
        ("few", ("linear",), 1, "2 <= n <= 16"),
        ("many", ("linear",), 1, "n*3 >= 17"),
        ("spare", (), 0, ""),
    ]


def test_a_function_is_cut_out_of_an_assembly_and_cleaned() -> None:
    assert function(ASSEMBLY, "scale_compute_") == (
        "scale_compute_:\n\ttestl\t%ecx, %ecx\n\tjle\t.LBB1_2\n.LBB1_2:\n\tretq\n"
    )
    with pytest.raises(InputError, match="no function 'scale'"):
        function(ASSEMBLY, "scale")
