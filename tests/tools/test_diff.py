from __future__ import annotations

from mlc.tools.diff import unified

BEFORE = """\
graph g(%x: f32[n, 4]) {
  %0: f32[4] = weight() {name='w', shape=(4,), dtype='f32'}
  %1: f32[n, 4] = mul(%x, %0)
  %2: f32[n, 4] = silu(%1)
  %3: f32[n, 4] = add(%2, %x)
  return %3
}"""


def lines(a: str, b: str, context: int = 3) -> list[str]:
    return list(unified(a, b, ("a", "b"), context=context))


def changes(a: str, b: str) -> list[str]:
    return [line for line in lines(a, b)[2:] if line[0] in "+-"]


def test_equal_graphs_give_nothing() -> None:
    assert lines(BEFORE, BEFORE) == []


def test_an_inserted_node_changes_no_other_line() -> None:
    after = (
        BEFORE.replace("%3", "%4")
        .replace("%2", "%3")
        .replace("silu(%1)", "silu(%2)")
        .replace("mul(%x, %0)\n", "mul(%x, %0)\n  %2: f32[n, 4] = tanh(%1)\n")
    )
    assert changes(BEFORE, after) == [
        "-  %2: f32[n, 4] = silu(%1)",
        "+  %2: f32[n, 4] = tanh(%1)",
        "+  %3: f32[n, 4] = silu(%2)",
    ]


def test_a_removed_unused_node_changes_no_other_line() -> None:
    dead = "  %1: f32[4] = weight() {name='dead', shape=(4,), dtype='f32'}\n"
    before = BEFORE.replace("%3", "%4").replace("%2", "%3").replace("%1", "%2").replace("  %2:", dead + "  %2:", 1)
    assert changes(before, BEFORE) == ["-" + dead.rstrip()]


def test_an_operand_that_comes_from_elsewhere_is_a_change() -> None:
    after = BEFORE.replace("silu(%1)", "silu(%x)")
    assert changes(BEFORE, after) == ["-  %2: f32[n, 4] = silu(%1)", "+  %2: f32[n, 4] = silu(%x)"]
    swapped = BEFORE.replace("add(%2, %x)", "add(%1, %x)")
    assert changes(BEFORE, swapped) == ["-  %3: f32[n, 4] = add(%2, %x)", "+  %3: f32[n, 4] = add(%1, %x)"]


def test_an_attribute_or_another_op_in_the_same_place_changes_one_line() -> None:
    weight = BEFORE.splitlines()[1]
    assert changes(BEFORE, BEFORE.replace("'w'", "'v'")) == [f"-{weight}", "+" + weight.replace("'w'", "'v'")]
    assert changes(BEFORE, BEFORE.replace("silu", "tanh")) == [
        "-  %2: f32[n, 4] = silu(%1)",
        "+  %2: f32[n, 4] = tanh(%1)",
    ]


def test_headers_are_those_of_a_unified_diff() -> None:
    after = BEFORE.replace("add(%2", "mul(%2")
    assert lines(BEFORE, after, context=1) == [
        "--- a",
        "+++ b",
        "@@ -4,3 +4,3 @@",
        "   %2: f32[n, 4] = silu(%1)",
        "-  %3: f32[n, 4] = add(%2, %x)",
        "+  %3: f32[n, 4] = mul(%2, %x)",
        "   return %3",
    ]
