"""What encoders share: bidirectional self-attention, a GELU MLP, a pooler. Weights are named as in BERT and ViT."""

from __future__ import annotations

from dataclasses import dataclass

from mlc.errors import BadConfig, UnsupportedModel
from mlc.ir import Value
from mlc.ir import ops as o

from .config import Fields
from .nn import Linear, Weights

_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}  # hidden_act: attribute of the op


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    layers: int
    hidden: int
    heads: int
    intermediate: int
    eps: float
    gelu: str  # how it is approximated; see the op
    qkv_bias: bool = True


def encoder_config(fields: Fields) -> EncoderConfig:
    """The keys that all encoders share. The caller takes its own keys and calls `fields.finish`."""
    activation = fields.text("hidden_act", "gelu")
    if activation not in _GELU:
        raise UnsupportedModel(f"{fields.source}: hidden_act is {activation!r}; mlc supports {', '.join(_GELU)} here")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise BadConfig(f"{fields.source}: hidden_size {hidden} does not divide into {heads} attention heads")
    return EncoderConfig(
        layers=fields.integer("num_hidden_layers", high=10_000),
        hidden=hidden,
        heads=heads,
        intermediate=fields.integer("intermediate_size"),
        eps=fields.number("layer_norm_eps", 1e-12),
        gelu=_GELU[activation],
        qkv_bias=fields.flag("qkv_bias", True),
    )


def attend(c: EncoderConfig, w: Weights, layer: str, inner: str, x: Value, lengths: Value | None = None) -> Value:
    """Self-attention within each batch item, x f32[b, t, hidden]; `inner` is where the layer names q, k and v."""
    q, k, v = (
        o.split_heads(Linear(w, f"{layer}.{inner}.{part}", c.hidden, c.hidden, c.qkv_bias)(x), heads=c.heads)
        for part in ("query", "key", "value")
    )
    mixed = o.merge_heads(o.full_attention(q, k, v, lengths, scale=(c.hidden // c.heads) ** -0.5))
    return Linear(w, f"{layer}.attention.output.dense", c.hidden, c.hidden, bias=True)(mixed)


def mlp(c: EncoderConfig, w: Weights, layer: str, x: Value) -> Value:
    """x f32[..., hidden], out and in again through `intermediate`."""
    wide = Linear(w, f"{layer}.intermediate.dense", c.hidden, c.intermediate, bias=True)(x)
    return Linear(w, f"{layer}.output.dense", c.intermediate, c.hidden, bias=True)(o.gelu(wide, approximate=c.gelu))


def pooled(c: EncoderConfig, w: Weights, h: Value) -> tuple[Value, ...]:
    """The first row of each batch item through the pooler, f32[b, hidden]; nothing for a checkpoint without one."""
    if "pooler.dense.weight" not in w:
        return ()
    return (o.tanh(Linear(w, "pooler.dense", c.hidden, c.hidden, bias=True)(o.take_token(h, index=0))),)
