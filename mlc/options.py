"""What the user may choose when a model is compiled."""

from __future__ import annotations

from dataclasses import dataclass

from mlc.errors import BadConfig

KV_TYPES = ("auto", "f32", "f16", "q8")
QUANTIZATIONS = ("none", "q8", "q8a", "q4", "q4a")


@dataclass(frozen=True, slots=True)
class Options:
    """`quant` none keeps the checkpoint's own number format; `target` is `host` or an instruction set's name; `kv_type`
    auto is f32 for a checkpoint that is f32 throughout, and f16 for others.
    """

    quant: str = "none"
    target: str = "host"
    kv_type: str = "auto"  # how keys and values are kept
    max_tokens: int = 512  # in one step
    max_sequences: int = 64  # in one step

    def check(self) -> None:
        """Raises BadConfig."""
        if self.quant not in QUANTIZATIONS:
            raise BadConfig(f"--quant {self.quant!r} is unknown; mlc has {', '.join(QUANTIZATIONS)}")
        if self.kv_type not in KV_TYPES:
            raise BadConfig(f"--kv-type {self.kv_type!r} is unknown; mlc has {', '.join(KV_TYPES)}")
        if not 1 <= self.max_sequences <= self.max_tokens <= 1 << 16:
            raise BadConfig("--max-sequences must be at least 1 and at most --max-tokens, which is at most 65536")
