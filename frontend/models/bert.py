"""BERT: a bidirectional encoder of text (arXiv 1810.04805), with the norm after each residual sum."""

from __future__ import annotations

from dataclasses import dataclass

from mlc.ir import Builder, Graph, Tensor, Value, sym, verify
from mlc.ir import ops as o

from ..config import Fields
from ..encoder import EncoderConfig, attend, encoder_config, mlp, pooled
from ..nn import Embedding, LayerNorm, Weights


@dataclass(frozen=True, slots=True)
class BertConfig:
    encoder: EncoderConfig
    vocab: int
    context: int  # tokens
    types: int


def config(fields: Fields) -> BertConfig:
    fields.expect("position_embedding_type", "absolute")
    fields.expect("is_decoder", False)
    fields.expect("add_cross_attention", False)
    fields.ignore("tie_word_embeddings")  # about the head of the masked language model, which is not here
    result = BertConfig(
        encoder=encoder_config(fields),
        vocab=fields.integer("vocab_size"),
        context=fields.integer("max_position_embeddings"),
        types=fields.integer("type_vocab_size", 2),
    )
    fields.finish()
    return result


def build(config: BertConfig, w: Weights) -> Graph:
    """The graph `encode`: a padded batch of texts.

    tokens and types i32[b, t], positions i32[t] = 0 .. t - 1, lengths i32[b] of at least 1. Returns the hidden state
    f32[b, t, hidden] (rows beyond a text's length mean nothing), its mean over each text f32[b, hidden], and what the
    pooler makes of the first token f32[b, hidden] where the checkpoint has a pooler.
    """
    c, b, t = config.encoder, sym("b"), sym("t")
    tokens, types = Value(Tensor((b, t), "i32"), "tokens"), Value(Tensor((b, t), "i32"), "types")
    positions, lengths = Value(Tensor((t,), "i32"), "positions"), Value(Tensor((b,), "i32"), "lengths")
    with Builder().active() as builder:
        h = o.add(
            Embedding(w, "embeddings.word_embeddings", config.vocab, c.hidden)(tokens),
            Embedding(w, "embeddings.token_type_embeddings", config.types, c.hidden)(types),
        )
        h = o.add(h, Embedding(w, "embeddings.position_embeddings", config.context, c.hidden)(positions))
        h = LayerNorm(w, "embeddings.LayerNorm", c.hidden, c.eps)(h)
        for i in range(c.layers):
            p = f"encoder.layer.{i}"
            h = o.add(attend(c, w, p, "attention.self", h, lengths), h)
            h = LayerNorm(w, f"{p}.attention.output.LayerNorm", c.hidden, c.eps)(h)
            h = LayerNorm(w, f"{p}.output.LayerNorm", c.hidden, c.eps)(o.add(mlp(c, w, p, h), h))
        outputs = (h, o.mean_rows(h, lengths), *pooled(c, w, h))
    return verify(Graph("encode", (tokens, types, positions, lengths), tuple(builder.nodes), outputs))
