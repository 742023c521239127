"""Quantizing, packing and folding, as text."""

from __future__ import annotations

from mlc.ir import parse_graph, verify
from mlc.passes import Pack, Quantize, fold, quantize_activations

MODEL = """graph m(%ids: i32[n]) {
  %0: bf16[96, 64] = weight() {name='embed.weight', shape=(96, 64), dtype='bf16'}
  %1: f32[n, 64] = embed(%0, %ids)
  %2: bf16[64, 64] = weight() {name='a.weight', shape=(64, 64), dtype='bf16'}
  %3: f32[n, 64] = linear(%1, %2)
  %4: f32[40, 64] = weight() {name='odd.weight', shape=(40, 64), dtype='f32'}
  %5: f32[n, 40] = linear(%3, %4)
  %6: f32[64, 40] = weight() {name='narrow.weight', shape=(64, 40), dtype='f32'}
  %7: f32[n, 64] = linear(%5, %6)
  %8: f32[n, 96] = linear(%7, %0)
  return %8
}"""


def test_products_get_the_scheme_and_the_table_eight_bits() -> None:
    text = str(Quantize(linear="q4_g32")(verify(parse_graph(MODEL))))
    assert "q8_g32[96, 64] = quantize" in text and text.count("q8_g32") == 1
    assert "q4_g32[64, 64] = quantize" in text and "q4_g32[40, 64] = quantize" in text


def test_a_width_that_is_no_multiple_of_the_group_stays_float() -> None:
    graph = Quantize(linear="q4a_g32")(verify(parse_graph(MODEL)))
    products = [n.inputs[1].tensor for n in graph.nodes if n.op.name == "linear"]
    assert [t.dtype for t in products] == ["q4a_g32", "q4a_g32", "f32", "q8_g32"]


def test_products_with_quantized_weights_read_integer_rows() -> None:
    graph = quantize_activations(Quantize()(verify(parse_graph(MODEL))))
    for node in graph.nodes:
        if node.op.name == "linear":
            assert (node.inputs[1].tensor.format is not None) == node.inputs[0].tensor.dtype.startswith("a8_")


def test_folding_splits_weights_from_requests() -> None:
    graph = Pack(lambda t: "r8")(quantize_activations(Quantize()(verify(parse_graph(MODEL)))))
    folded = fold(graph)
    assert folded.names == ("embed.weight", "a.weight", "odd.weight", "narrow.weight")
    assert folded.conversion.inputs == () and len(folded.conversion.outputs) == 4
    assert {n.op.name for n in folded.forward.nodes} == {"constant", "embed", "linear", "quantize_rows"}
    assert {n.op.name for n in folded.conversion.nodes} == {"weight", "quantize", "pack"}
    assert verify(parse_graph(str(folded.forward))) == folded.forward
