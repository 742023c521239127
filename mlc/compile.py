"""From a checkpoint to an artifact: the one place where frontend, passes and backends meet.

checkpoint -> frontend -> fuse -> quantize -> pack -> fold -> lower -> library + weights + manifest
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import __version__
from mlc.backends.convert import Data, convert
from mlc.backends.program import Program, evaluate_size
from mlc.frontend.checkpoints.folder import Checkpoint, check, open_checkpoint
from mlc.frontend.checkpoints.gguf_names import GgufModel
from mlc.frontend.checkpoints.hub import TEXT_FILES
from mlc.frontend.nn import Weights
from mlc.frontend.registry import find
from mlc.ir import Graph, Tensor, parse_format
from mlc.options import Options
from mlc.passes import (
    SCHEMES,
    Folded,
    Interval,
    Pack,
    Quantize,
    clean,
    dump,
    fold,
    fuse,
    plan_memory,
    quantize_activations,
)

if TYPE_CHECKING:
    from mlc.backends.cpu.choice import Choose

Progress = Callable[[str, float], None]  # (phase, share of it that is done)

PHASES = ("read checkpoint", "build graph", "choose kernels", "compile kernels", "convert weights", "write artifact")


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint and the graph it means, before any pass."""

    name: str
    checkpoint: Checkpoint
    config: Any
    graph: Graph
    dtypes: Mapping[str, str]
    raw: Mapping[str, Any] = field(default_factory=dict)


def read_model(path: Path, name: str, kv_type: str = "auto") -> Model:
    """Open a checkpoint, check every tensor against the graph, read no data. Raises InputError and its kinds."""
    checkpoint = open_checkpoint(path)
    raw = checkpoint.config()
    module, config = find(raw, path.name if path.is_file() else str(path / "config.json"))
    dtypes = {name: info.dtype for name, info in checkpoint.tensors().items()}
    graph = module.build(config, Weights(dtypes, kv_type=kv_type))
    expected = {name: node.output.tensor.shape for name, node in graph.weights().items()}
    check(checkpoint, expected, optional=_unread(dtypes, expected))
    return Model(name, checkpoint, config, graph, dtypes, raw)


_TIED = {"lm_head.weight", "model.embed_tokens.weight"}


def _unread(names: Iterable[str], used: Collection[str]) -> set[str]:
    """Tensors that a checkpoint may hold and the graph does not read: the second copy of a tied matrix, old tables."""
    unread = {name for name in names if name.endswith("rotary_emb.inv_freq")}
    return unread | (_TIED if len(_TIED & set(used)) == 1 else set())


def stages(model: Model, options: Options, layout: Callable[[Tensor], str]) -> dict[str, Graph]:
    """The graph after each pass, by the name `mlc show --stage` knows it by."""
    passes: list[tuple[str, Callable[[Graph], Graph]]] = [
        ("frontend", clean),
        ("fused", fuse),
        ("quantized", Quantize(SCHEMES.get(options.quant), SCHEMES.get(options.edge_quant))),
        ("activations", quantize_activations),
        ("packed", Pack(layout)),
    ]
    graph = model.graph
    result: dict[str, Graph] = {}
    for number, (name, apply) in enumerate(passes):
        graph = apply(graph)
        dump(graph, f"{number:02}", name)
        result[name] = graph
    return result


def compile_model(
    path: Path, name: str, out: Path, options: Options, progress: Progress, choices: Path | None = None
) -> None:
    """Compile the checkpoint at `path` into the folder `out`, which appears only when it is complete.

    What this machine's fastest kernels are is looked up in the folder `choices`, and kept there when it was found out.
    Needs TVM's compiler, so call it in a process of its own (`cache.compile_to`). Raises MlcError and its kinds.
    """
    from mlc.backends.artifact import FORMAT, WEIGHTS, Manifest, digest, write_manifest
    from mlc.backends.cpu.choice import usual
    from mlc.backends.cpu.lower import layout_of
    from mlc.backends.cpu.target import describe, find_isa
    from mlc.backends.tvm.autotune import Autotuner
    from mlc.backends.tvm.export import build_library, versions

    options.check()
    progress(PHASES[0], 0)
    isa = find_isa(options.target)
    model = read_model(path, name, options.kv_type)
    progress(PHASES[1], 0)
    folded = fold(stages(model, options, lambda t: layout_of(t, isa))["packed"])
    progress(PHASES[2], 0)
    choose = Autotuner(isa, options.tune, choices) if options.target == "host" else usual
    program, kernels = lower(folded.forward, isa, limits(model, options), choose)

    work = out.with_name(f"{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        progress(PHASES[3], 0)
        library = build_library(kernels, isa, work / "module")
        progress(PHASES[4], 0)
        source = CheckpointSource(model.checkpoint, model.dtypes)
        convert(
            folded.conversion, folded.names, source, work / WEIGHTS, lambda a, b: progress(PHASES[4], a / max(b, 1))
        )
        progress(PHASES[5], 0)
        _write_texts(work, model, program, folded)
        files = sorted(p.name for p in work.iterdir())
        write_manifest(
            work,
            Manifest(
                format=FORMAT,
                name=name,
                model_type=str(model.raw["model_type"]),
                created_by=f"mlc {__version__}, {versions()}",
                target=describe(isa),
                quantization=_quantization(options),
                kv_type=program.kv_dtype,
                parameters=count_parameters(model.graph),
                context=model.config.context if program.kv_layers else 0,
                vocab=model.config.vocab if program.kv_layers else 0,
                library=library.name,
                programs=(program.name,),
                digests={file: digest(work / file) for file in files},
            ),
        )
        shutil.rmtree(out, ignore_errors=True)
        work.rename(out)
        progress(PHASES[5], 1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _quantization(options: Options) -> str:
    """What was asked for, as `mlc show` and `mlc bench` print it."""
    if options.embedding_quant == "auto":
        return options.quant
    return f"{options.quant}, embeddings {options.embedding_quant}"


ENCODER_BATCH = 8  # texts or images that an encoder takes at once


def limits(model: Model, options: Options) -> dict[str, int]:
    """The largest values of a graph's symbols: tokens n and rows r of a step, or texts b of t tokens."""
    dims = {str(d) for v in model.graph.inputs if isinstance(v.type, Tensor) for d in v.type.shape}
    known = {"n": options.max_tokens, "r": options.max_sequences, "b": ENCODER_BATCH}
    if "t" in dims:
        known["t"] = model.config.context
    return {symbol: most for symbol, most in known.items() if symbol in dims}


def lower(graph: Graph, isa: Any, limits: dict[str, int], choose: Choose | None = None) -> tuple[Program, list[Any]]:
    """The program of a folded graph and its kernels, arena planned for `limits`. Raises NoLowering.

    `choose` picks among kernels of the same result; by default, what is usually fastest.
    """
    from mlc.backends.cpu.choice import usual
    from mlc.backends.cpu.lower import PAGE, SPAN, CpuLowering, lower_sampling

    lowering = CpuLowering(graph, isa, choose or usual)
    lowering.run()
    forward = len(lowering.calls)
    if lowering.kv_layers:
        lower_sampling(lowering)
    intervals = [
        Interval(math.ceil(evaluate_size(b.size, limits) * b.item), first, last)
        for b, (first, last) in zip(lowering.buffers, lowering.lifetimes(), strict=True)
    ]
    plan = plan_memory(intervals)
    inputs, outputs = lowering.ports()
    kernels = list(lowering.kernels.values())
    program = Program(
        name=graph.name,
        kernels=tuple(k.name for k in kernels),
        calls=lowering.placed_calls(plan.offsets),
        forward=forward,
        inputs=inputs,
        outputs=outputs,
        limits=limits,
        arena=plan.size,
        scratch=max((k.scratch for k in kernels), default=0),
        kv_dtype=lowering.kv_dtype,
        kv_layers=tuple(lowering.kv_layers[i] for i in sorted(lowering.kv_layers)),
        page=PAGE if lowering.kv_layers else 0,
        span=SPAN if lowering.kv_layers else 0,
        tile_rows=lowering.tile_rows if lowering.kv_layers else 0,
        partial=lowering.partial,
    )
    return program, kernels


def count_parameters(graph: Graph) -> int:
    """Numbers in the checkpoint's weights."""
    return sum(math.prod(d for d in n.output.tensor.shape if isinstance(d, int)) for n in graph.weights().values())


class CheckpointSource:
    """A checkpoint as weight conversion reads it: GGUF blocks become quantized arrays."""

    def __init__(self, checkpoint: Checkpoint, dtypes: Mapping[str, str]) -> None:
        self.checkpoint, self.dtypes = checkpoint, dtypes

    def rows(self, name: str, start: int, stop: int) -> Data:
        if parse_format(self.dtypes[name]) is None:
            return self.checkpoint.rows(name, start, stop)
        return self.checkpoint.decoded(name, start, stop)

    def release(self) -> None:
        self.checkpoint.release()


def _write_texts(work: Path, model: Model, program: Program, folded: Folded) -> None:
    """Everything of the artifact that is text."""
    import msgspec

    (work / f"program-{program.name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(program), indent=1))
    (work / f"graph-{program.name}.ir").write_text(f"{folded.forward}\n")
    (work / f"weights-{program.name}.ir").write_text(f"{folded.conversion}\n")
    checkpoint = model.checkpoint
    if isinstance(checkpoint, GgufModel):
        from mlc.frontend.checkpoints.gguf_tokenizer import write_tokenizer

        write_tokenizer(checkpoint.metadata(), work)
        (work / "config.json").write_text(json.dumps(dict(model.raw), indent=1))
        return
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    for name in TEXT_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, work / name)
