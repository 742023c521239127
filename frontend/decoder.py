"""The Llama family: one definition of a pre-norm decoder with rotary positions and a gated MLP.

Llama 2 and 3, Mistral, Qwen 2 and 3 and SmolLM differ in the few switches of `DecoderConfig`; the thin files in
`models/` fill them from a config. Weights are named as in the Hugging Face checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlc.errors import BadConfig
from mlc.ir import Builder, Graph, State, Tensor, Value, sym, verify
from mlc.ir import ops as o

from .config import Fields
from .nn import Embedding, Linear, RMSNorm, Weights


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Arguments of the op `rope_frequencies`; see there."""

    kind: str = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes are counts of numbers, heads, layers or tokens."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int  # tokens
    eps: float
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = RopeScaling()
    tied: bool = False  # the head reads the embedding table
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMS norm of each q and k head before the rotation
    windows: tuple[int, ...] = ()  # tokens each layer looks back, 0 for all; empty for all layers
    permuted_qk: bool = False  # GGUF llama files store q and k for adjacent-pair rotation
    rope_factors: bool = False  # GGUF files of Llama 3.1 hold the divisors of the frequencies as a tensor


def decoder_config(
    fields: Fields, *, qkv_bias: bool = False, o_bias: bool = False, mlp_bias: bool = False, qk_norm: bool = False
) -> DecoderConfig:
    """The keys that all models of the family share. The caller takes its own keys first; unknown ones are refused."""
    fields.expect("hidden_act", "silu")
    fields.expect("rope_interleaved", False)
    fields.expect("partial_rotary_factor", 1.0, 1)
    fields.expect("quantization_config", None)
    layers = fields.integer("num_hidden_layers", high=10_000)
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    head_dim = fields.integer("head_dim", hidden // heads)
    if heads % kv_heads:
        raise BadConfig(f"{fields.source}: {heads} attention heads do not divide into {kv_heads} key-value heads")
    if head_dim % 2:
        raise BadConfig(f"{fields.source}: head_dim must be even for rotary positions, got {head_dim}")
    theta, scaling = _rope(fields)
    config = DecoderConfig(
        model_type=fields.text("model_type"),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=fields.integer("intermediate_size"),
        vocab=fields.integer("vocab_size"),
        context=fields.integer("max_position_embeddings", 2048),
        eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=fields.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        windows=_windows(fields, layers),
        permuted_qk=fields.flag("permuted_qk", False),
        rope_factors=fields.flag("rope_freqs", False),
    )
    fields.finish()
    return config


def _rope(fields: Fields) -> tuple[float, RopeScaling]:
    """theta and scaling, from the released keys (rope_theta, rope_scaling) or from transformers 5's rope_parameters."""
    theta = fields.number("rope_theta", 10_000.0)
    table = fields.table("rope_parameters") or fields.table("rope_scaling")
    if table is None:
        return theta, RopeScaling()
    theta = table.number("rope_theta", theta)
    old_kind = table.text("type", "default")
    kind = table.text("rope_type", old_kind)
    table.ignore("type")
    if kind == "default":
        scaling = RopeScaling()
    elif kind == "linear":
        scaling = RopeScaling("linear", table.number("factor"))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            table.number("factor"),
            table.number("low_freq_factor"),
            table.number("high_freq_factor"),
            table.integer("original_max_position_embeddings"),
        )
    else:
        table.expect("rope_type", "default", "linear", "llama3")
        table.expect("type", "default", "linear", "llama3")
        raise BadConfig(f"{table.source}: unknown rope type {kind!r}")
    table.finish()
    return theta, scaling


def _windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """How far each layer looks back: sliding_window, limited by use_sliding_window, layer_types, max_window_layers."""
    window = fields.integer("sliding_window", 0, low=0)
    used = fields.flag("use_sliding_window", fields.raw.get("model_type") == "mistral")
    first = fields.integer("max_window_layers", 0, low=0)
    kinds = fields.texts("layer_types")
    if kinds is not None and len(kinds) != layers:
        raise BadConfig(f"{fields.source}: layer_types names {len(kinds)} layers, the model has {layers}")
    if kinds is not None and set(kinds) - {"full_attention", "sliding_attention"}:
        raise BadConfig(f"{fields.source}: layer_types may be full_attention or sliding_attention, got {set(kinds)}")
    if kinds is not None and "sliding_attention" in kinds and not window:
        raise BadConfig(f"{fields.source}: layer_types names sliding layers, but sliding_window is not set")
    if kinds is not None:
        windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    else:
        windows = tuple(window if used and layer >= first else 0 for layer in range(layers))
    return windows if any(windows) else ()


def _block(
    c: DecoderConfig, w: Weights, i: int, h: Value, positions: Value, frequencies: Value, kv: Value
) -> tuple[Value, Value]:
    """One layer: h f32[n, hidden] has one row per token of the step; kv is threaded through."""
    p = f"model.layers.{i}"
    x = RMSNorm(w, f"{p}.input_layernorm", c.hidden, c.eps)(h)
    q = _rows(c, w, f"{p}.self_attn.q_proj", c.heads, x)  # f32[n, heads, head_dim]
    k = _rows(c, w, f"{p}.self_attn.k_proj", c.kv_heads, x)
    v = o.split_heads(
        Linear(w, f"{p}.self_attn.v_proj", c.hidden, c.kv_heads * c.head_dim, c.qkv_bias)(x), heads=c.kv_heads
    )
    if c.qk_norm:
        q = RMSNorm(w, f"{p}.self_attn.q_norm", c.head_dim, c.eps)(q)
        k = RMSNorm(w, f"{p}.self_attn.k_norm", c.head_dim, c.eps)(k)
    q, k = o.rope(q, positions, frequencies), o.rope(k, positions, frequencies)

    kv = o.kv_append(kv, k, v, layer=i)
    window = c.windows[i] if c.windows else 0
    a = o.attention(q, kv, layer=i, kv_heads=c.kv_heads, scale=c.head_dim**-0.5, window=window)
    h = o.add(h, Linear(w, f"{p}.self_attn.o_proj", c.heads * c.head_dim, c.hidden, c.o_bias)(o.merge_heads(a)))

    x = RMSNorm(w, f"{p}.post_attention_layernorm", c.hidden, c.eps)(h)
    gate = Linear(w, f"{p}.mlp.gate_proj", c.hidden, c.intermediate, c.mlp_bias)(x)
    up = Linear(w, f"{p}.mlp.up_proj", c.hidden, c.intermediate, c.mlp_bias)(x)
    mixed = o.mul(o.silu(gate), up)
    return o.add(h, Linear(w, f"{p}.mlp.down_proj", c.intermediate, c.hidden, c.mlp_bias)(mixed)), kv


def _rows(c: DecoderConfig, w: Weights, name: str, heads: int, x: Value) -> Value:
    """The q or k projection, its rows put into half-split order where the checkpoint has them in pairs."""
    matrix = w(f"{name}.weight", heads * c.head_dim, c.hidden)
    bias = w.f32(f"{name}.bias", heads * c.head_dim) if c.qkv_bias else None
    if c.permuted_qk:
        matrix = o.unpermute_rope(matrix, heads=heads)
        bias = o.unpermute_rope(bias, heads=heads) if bias is not None else None
    return o.split_heads(o.linear(x, matrix, bias), heads=heads)


def build(c: DecoderConfig, w: Weights) -> Graph:
    """The graph `forward`: one step over ragged tokens.

    tokens, positions i32[n]: the step's tokens, whatever sequences they belong to; rows i32[r]: those whose logits are
    wanted; kv: the paged cache. Returns logits f32[r, vocab] and the new kv.
    """
    n, r = sym("n"), sym("r")
    tokens, positions = Value(Tensor((n,), "i32"), "tokens"), Value(Tensor((n,), "i32"), "positions")
    rows, state = Value(Tensor((r,), "i32"), "rows"), Value(State("kv", w.state_dtype), "kv")
    s = c.rope_scaling
    with Builder().active() as builder:
        frequencies = o.rope_frequencies(
            dim=c.head_dim,
            theta=c.rope_theta,
            scaling=s.kind,
            factor=s.factor,
            low=s.low,
            high=s.high,
            original_context=s.original_context,
        )
        if c.rope_factors:
            frequencies = o.div(frequencies, w.f32("rope_freqs.weight", c.head_dim // 2))
        table = "model.embed_tokens"
        if c.tied and f"{table}.weight" not in w and "lm_head.weight" in w:
            table = "lm_head"  # some tied checkpoints keep the one matrix under this name
        h = Embedding(w, table, c.vocab, c.hidden)(tokens)
        kv = state
        for i in range(c.layers):
            h, kv = _block(c, w, i, h, positions, frequencies, kv)
        h = RMSNorm(w, "model.norm", c.hidden, c.eps)(o.take_rows(h, rows))
        logits = Linear(w, table if c.tied else "lm_head", c.hidden, c.vocab)(h)
    return verify(Graph("forward", (tokens, positions, rows, state), tuple(builder.nodes), (logits, kv)))
