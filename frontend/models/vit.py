"""ViT: an encoder of images cut into square patches (arXiv 2010.11929), with the norm before each block."""

from __future__ import annotations

from dataclasses import dataclass

from mlc.errors import BadConfig
from mlc.ir import Builder, Graph, Tensor, Value, sym, verify
from mlc.ir import ops as o

from ..config import Fields
from ..encoder import EncoderConfig, attend, encoder_config, mlp, pooled
from ..nn import LayerNorm, Weights


@dataclass(frozen=True, slots=True)
class ViTConfig:
    encoder: EncoderConfig
    image: int  # pixels, height and width
    patch: int  # pixels, height and width
    channels: int


def config(fields: Fields) -> ViTConfig:
    fields.expect("pooler_act", "tanh")
    fields.expect("pooler_output_size", None, fields.raw.get("hidden_size"))
    fields.ignore("encoder_stride")  # for masked image modelling
    result = ViTConfig(
        encoder=encoder_config(fields),
        image=fields.integer("image_size", 224, high=1 << 14),
        patch=fields.integer("patch_size", 16),
        channels=fields.integer("num_channels", 3),
    )
    if result.image < result.patch:
        raise BadConfig(f"{fields.source}: patch_size {result.patch} is larger than image_size {result.image}")
    fields.finish()
    return result


def build(config: ViTConfig, w: Weights) -> Graph:
    """The graph `encode`: a batch of images.

    pixels f32[b, channels, image, image]. Returns the hidden state f32[b, 1 + patches, hidden], whose first row stands
    for the image, and what the pooler makes of that row f32[b, hidden] where the checkpoint has a pooler.
    """
    c = config.encoder
    pixels = Value(Tensor((sym("b"), config.channels, config.image, config.image), "f32"), "pixels")
    rows = (config.image // config.patch) ** 2 + 1
    name = "embeddings.patch_embeddings.projection"
    with Builder().active() as builder:
        kernel = w.f32(f"{name}.weight", c.hidden, config.channels, config.patch, config.patch)
        h = o.conv2d(pixels, kernel, w.f32(f"{name}.bias", c.hidden), stride=config.patch, padding=0)
        h = o.prepend_row(o.patches_to_rows(h), _flat(w.f32("embeddings.cls_token", 1, 1, c.hidden)))
        positions = _flat(w.f32("embeddings.position_embeddings", 1, rows, c.hidden))
        h = o.add(h, o.split_heads(positions, heads=rows))  # f32[rows, hidden], the same for each image
        for i in range(c.layers):
            p = f"encoder.layer.{i}"
            x = LayerNorm(w, f"{p}.layernorm_before", c.hidden, c.eps)(h)
            h = o.add(attend(c, w, p, "attention.attention", x), h)
            h = o.add(mlp(c, w, p, LayerNorm(w, f"{p}.layernorm_after", c.hidden, c.eps)(h)), h)
        h = LayerNorm(w, "layernorm", c.hidden, c.eps)(h)
        outputs = (h, *pooled(c, w, h))
    return verify(Graph("encode", (pixels,), tuple(builder.nodes), outputs))


def _flat(x: Value) -> Value:
    """[1, rows, width] -> [rows * width]."""
    return o.merge_heads(o.merge_heads(x))
