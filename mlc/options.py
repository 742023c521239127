"""What the user may choose when a model is compiled."""

from __future__ import annotations

from dataclasses import dataclass

from mlc.errors import BadConfig

QUANTIZATIONS = ("none", "q8", "q8a", "q4", "q4a")


@dataclass(frozen=True, slots=True)
class Options:
    """`quant` none keeps the checkpoint's own number format; `target` is `host` or an instruction set's name."""

    quant: str = "none"
    target: str = "host"
    max_tokens: int = 512  # in one step
    max_sequences: int = 64  # in one step

    def check(self) -> None:
        """Raises BadConfig."""
        if self.quant not in QUANTIZATIONS:
            raise BadConfig(f"--quant {self.quant!r} is unknown; mlc has {', '.join(QUANTIZATIONS)}")
        if not 1 <= self.max_sequences <= self.max_tokens <= 1 << 16:
            raise BadConfig("--max-sequences must be at least 1 and at most --max-tokens, which is at most 65536")
