"""What the user may choose when a model is compiled."""

from __future__ import annotations

from dataclasses import dataclass

from mlc.errors import BadConfig

KV_TYPES = ("auto", "f32", "f16", "q8")
QUANTIZATIONS = ("none", "q8", "q8a", "q6", "q4", "q4a")
EMBEDDING_QUANTIZATIONS = ("auto", *QUANTIZATIONS)


@dataclass(frozen=True, slots=True)
class Options:
    """`quant` and `embedding_quant` none keep the checkpoint's own number format; `target` is `host` or an instruction
    set's name; `kv_type` auto is f32 for a checkpoint that is f32 throughout, and f16 for others.
    """

    quant: str = "none"
    target: str = "host"
    kv_type: str = "auto"  # how keys and values are kept
    max_tokens: int = 512  # in one step
    max_sequences: int = 64  # in one step
    embedding_quant: str = "auto"  # of the embedding table and the output head; auto is q8 where `quant` is not none
    tune: float = 10.0  # seconds after which no more kernels are tried out for this machine; 0: none are

    @property
    def edge_quant(self) -> str:
        """What `embedding_quant` comes to: one of QUANTIZATIONS."""
        if self.embedding_quant != "auto":
            return self.embedding_quant
        return "none" if self.quant == "none" else "q8"

    def check(self) -> None:
        """Raises BadConfig."""
        if self.quant not in QUANTIZATIONS:
            raise BadConfig(f"--quant {self.quant!r} is unknown; mlc has {', '.join(QUANTIZATIONS)}")
        if self.embedding_quant not in EMBEDDING_QUANTIZATIONS:
            raise BadConfig(
                f"--embedding-quant {self.embedding_quant!r} is unknown; mlc has {', '.join(EMBEDDING_QUANTIZATIONS)}"
            )
        if self.kv_type not in KV_TYPES:
            raise BadConfig(f"--kv-type {self.kv_type!r} is unknown; mlc has {', '.join(KV_TYPES)}")
        if not 0 <= self.tune <= 3600:
            raise BadConfig(f"--tune {self.tune:g} is no time; expected 0 to 3600 seconds")
        if not 1 <= self.max_sequences <= self.max_tokens <= 1 << 16:
            raise BadConfig("--max-sequences must be at least 1 and at most --max-tokens, which is at most 65536")
