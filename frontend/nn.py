"""The few modules that models are made of. Calling a module emits nodes; a module owns names and sizes, never data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlc.ir import Value
from mlc.ir import ops as o


@dataclass(frozen=True, slots=True)
class Weights:
    """The checkpoint's tensors as the graph sees them: a name, a shape, and the dtype the checkpoint stores.

    `dtypes` maps tensor names to dtypes (`bf16`, `q8_g32`, ...); tensors it does not know are of dtype `default`.
    """

    dtypes: Mapping[str, str]
    default: str = "f32"
    kv_type: str = "auto"

    def __call__(self, name: str, *shape: int) -> Value:
        return o.weight(name=name, shape=shape, dtype=self.dtypes.get(name, self.default))

    def f32(self, name: str, *shape: int) -> Value:
        """The tensor as f32, for arithmetic that is not a product: norms, biases, positions."""
        value = self(name, *shape)
        return value if value.tensor.dtype == "f32" else o.cast(value, dtype="f32")

    @property
    def state_dtype(self) -> str:
        """What the KV cache is stored as; auto means f32 where every tensor of the checkpoint is, else f16."""
        if self.kv_type != "auto":
            return self.kv_type
        return "f16" if set(self.dtypes.values()) - {"f32"} else "f32"

    def __contains__(self, name: str) -> bool:
        return name in self.dtypes


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T (+ bias): [..., inputs] -> [..., outputs]."""

    weights: Weights
    name: str
    inputs: int
    outputs: int
    bias: bool = False

    def __call__(self, x: Value) -> Value:
        bias = self.weights.f32(f"{self.name}.bias", self.outputs) if self.bias else None
        return o.linear(x, self.weights(f"{self.name}.weight", self.outputs, self.inputs), bias)


@dataclass(frozen=True, slots=True)
class Embedding:
    """table[ids]: i32[...] -> f32[..., width]."""

    weights: Weights
    name: str
    rows: int
    width: int

    def __call__(self, ids: Value) -> Value:
        return o.embed(self.weights(f"{self.name}.weight", self.rows, self.width), ids)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    weights: Weights
    name: str
    size: int
    eps: float

    def __call__(self, x: Value) -> Value:
        return o.rms_norm(x, self.weights.f32(f"{self.name}.weight", self.size), eps=self.eps)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    weights: Weights
    name: str
    size: int
    eps: float

    def __call__(self, x: Value) -> Value:
        weight, bias = (self.weights.f32(f"{self.name}.{part}", self.size) for part in ("weight", "bias"))
        return o.layer_norm(x, weight, bias, eps=self.eps)
