"""Quantized models: what was compiled equals the same quantized graph on the numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from mlc.backends.reference import PagedKv, empty_layers, evaluate
from mlc.compile import CheckpointSource, read_model, stages
from mlc.options import Options

OPS = ("embed", "linear")
TOKENS = [(i * 37 + i * i) % 211 for i in range(40)]


def reference_logits(folder, quant: str, kv_type: str = "f32", embedding_quant: str = "auto") -> np.ndarray:
    """f32[tokens, vocab] of the quantized graph, packing left out: it moves bytes, not numbers."""
    model = read_model(folder, "model", kv_type)
    graph = stages(model, Options(quant=quant, embedding_quant=embedding_quant), lambda t: "")["packed"]
    c, n = model.config, len(TOKENS)
    layers = empty_layers(layers=c.layers, pages=1, page_size=n, kv_heads=c.kv_heads, d=c.head_dim, dtype=kv_type)
    order = np.arange(n, dtype=np.int32)
    one = np.zeros(1, np.int32)
    kv = PagedKv(layers, np.array([0, n], np.int32), np.array([n], np.int32), one[None], order, kv_type)
    source = CheckpointSource(model.checkpoint, model.dtypes)
    rows = {name: node.output.tensor.shape[0] for name, node in graph.weights().items()}
    feeds = {"tokens": np.array(TOKENS, np.int32), "positions": order, "rows": order, "kv": kv}
    return evaluate(graph, feeds, lambda name: source.rows(name, 0, int(str(rows[name]))))[0]


@pytest.mark.parametrize(
    ("quant", "embedding_quant"),
    [
        *((quant, "auto") for quant in ("none", "q8", "q8a", "q6", "q4", "q4a")),
        *(("q4", "none"), ("q4", "q4"), ("q8", "q6"), ("none", "q6")),
    ],
)
def test_the_compiled_model_equals_the_reference_of_its_graph(quant, embedding_quant, checkpoint, compiled, runner):
    folder = checkpoint("one_layer").folder
    ours = runner(compiled(folder, quant=quant, embedding_quant=embedding_quant)).logits(TOKENS, 40)
    reference = reference_logits(folder, quant, embedding_quant=embedding_quant)
    errors = np.abs(ours - reference).max(axis=1) / np.abs(reference).max()
    # Where an activation lies on a rounding boundary it may round the other way: that row is a step of 127 off.
    plain = (quant, embedding_quant) == ("none", "auto")
    assert np.median(errors) < 1e-5 and errors.max() < (1e-5 if plain else 2e-2)


@pytest.mark.parametrize(("quant", "kv_type"), [("none", "f32"), ("none", "f16"), ("none", "q8"), ("q4", "q8")])
def test_every_kv_type_equals_the_reference_of_its_graph(quant, kv_type, checkpoint, compiled, runner):
    folder = checkpoint("one_layer").folder
    model = runner(compiled(folder, quant=quant, kv_type=kv_type))
    ours, reference = model.logits(TOKENS, 40), reference_logits(folder, quant, kv_type)
    errors = np.abs(ours - reference).max(axis=1) / np.abs(reference).max()
    # What rounds the other way, here to half precision or to bytes, moves the rows that see it.
    assert np.median(errors) < 1e-4 and errors.max() < 2e-2
    for chunk in (1, 17):
        assert model.logits(TOKENS, chunk).tobytes() == ours.tobytes()


def test_a_smaller_kv_type_takes_less_memory_and_stays_near(checkpoint, compiled, runner):
    case = checkpoint("qwen3")
    models = [runner(compiled(case.folder, kv_type=kv_type)) for kv_type in ("f32", "f16", "q8")]
    sizes = [m.model.kv_bytes for m in models]
    assert sizes == [3 * 2 * 2 * 32 * 4, 3 * 2 * 2 * 32 * 2, 3 * 2 * 2 * (32 + 4)]
    truth = case.logits(TOKENS)
    errors = [float(np.abs(m.logits(TOKENS, 40) - truth).max() / np.abs(truth).max()) for m in models]
    assert errors == sorted(errors) and errors[2] < 0.05


@pytest.mark.parametrize("quant", ["q8", "q6", "q4"])
def test_a_row_does_not_depend_on_its_neighbours(quant, checkpoint, compiled, runner):
    model = runner(compiled(checkpoint("qwen3").folder, quant=quant))
    whole = model.logits(TOKENS, 40)
    for chunk in (1, 5, 17):
        assert model.logits(TOKENS, chunk).tobytes() == whole.tobytes()


def test_more_bits_are_closer_to_the_truth(checkpoint, compiled, runner):
    case = checkpoint("qwen3")
    truth = case.logits(TOKENS)
    errors = [
        float(np.abs(runner(compiled(case.folder, quant=q)).logits(TOKENS, 40) - truth).mean())
        for q in ("none", "q8", "q6", "q4a", "q4")
    ]
    assert errors == sorted(errors)


def test_the_embedding_table_and_the_head_have_a_format_of_their_own(checkpoint):
    model = read_model(checkpoint("qwen3").folder, "model")

    def formats(quant: str, embedding_quant: str) -> tuple[set[str], set[str]]:
        """Those of the table and of the product that makes the logits; those of all other products."""
        graph = stages(model, Options(quant=quant, embedding_quant=embedding_quant), lambda t: "")["activations"]
        read = [(node, node.inputs[node.op.name == "linear"]) for node in graph.nodes if node.op.name in OPS]
        edges = {v.tensor.dtype for node, v in read if node.op.name == "embed" or node.outputs[0] is graph.outputs[0]}
        return edges, {v.tensor.dtype for _, v in read} - edges

    stored = formats("none", "auto")[0]
    assert formats("q4", "auto") == ({"q8_g32"}, {"q4_g32"})
    assert formats("q4", "q6") == ({"q6_g32"}, {"q4_g32"})
    assert formats("q4", "none") == (stored, {"q4_g32"})
    assert formats("none", "q6") == ({"q6_g32"}, stored)
    assert formats("q6", "q6") == ({"q6_g32"}, set())
