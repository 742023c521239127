"""What the machine can do at most, measured by a process of its own: `python -m mlc.cli.bench_limits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlc.backends.tvm.limits import Limits
from mlc.tools.peers.serve import serve


class LimitsSide:
    """Answers `open` and `measure` in the manner of `tools/peers/serve.py`."""

    def about(self) -> dict[str, str]:
        return {"name": "limits"}

    def open(self, model: str, threads: int, options: Mapping[str, str]) -> dict[str, Any]:
        self._limits = Limits(threads)
        return {"threads": threads}

    def measure(self) -> dict[str, float]:
        return self._limits.measure()


if __name__ == "__main__":
    serve(LimitsSide())
