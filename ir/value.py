"""Value: one result of one node, or one graph input."""

from __future__ import annotations

from dataclasses import dataclass

from .types import Tensor, Type


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """Compared by identity. `name` is set for graph inputs only."""

    type: Type
    name: str = ""

    @property
    def tensor(self) -> Tensor:
        """The type, which must be a tensor's."""
        assert isinstance(self.type, Tensor), f"{self.name} is a {self.type}"
        return self.type
