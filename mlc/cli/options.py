"""Options that several commands take, so that they mean and say the same everywhere."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from mlc.options import EMBEDDING_QUANTIZATIONS, KV_TYPES, QUANTIZATIONS

_MODEL, _COMPILE, _SAMPLING, _ENGINE = "Model", "Compiling", "Sampling", "Engine"

Source: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face hub id, a checkpoint's folder, or its file of weights. Default: the bundled tiny model.",
        show_default=False,
    ),
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        help="A hub id, a checkpoint's folder or file, or a compiled model. Default: the bundled tiny model.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Quant: TypeAlias = Annotated[
    str,
    typer.Option(
        "--quant",
        help="Number format of the weights: none (as the checkpoint has them), q8, q8a, q6, q4 or q4a; 'a' is "
        "asymmetric.",
        rich_help_panel=_COMPILE,
        autocompletion=lambda: list(QUANTIZATIONS),
    ),
]
EmbeddingQuant: TypeAlias = Annotated[
    str,
    typer.Option(
        "--embedding-quant",
        help="The same of the embedding table and the output head; auto: q8 with --quant, else as the checkpoint has "
        "them.",
        rich_help_panel=_COMPILE,
        autocompletion=lambda: list(EMBEDDING_QUANTIZATIONS),
    ),
]
KvType: TypeAlias = Annotated[
    str,
    typer.Option(
        "--kv-type",
        help="Number format of the KV cache: f32, f16, q8 (bytes with scales); auto: f32 if all weights are, else f16.",
        rich_help_panel=_COMPILE,
        autocompletion=lambda: list(KV_TYPES),
    ),
]
Target: TypeAlias = Annotated[
    str,
    typer.Option(
        "--target",
        help="Instruction set to compile for: host, or a name such as avx2, avx512_vnni, neon.",
        rich_help_panel=_COMPILE,
    ),
]
Tune: TypeAlias = Annotated[
    float,
    typer.Option(
        "--tune",
        metavar="SECONDS",
        help="How long to try out kernels for the shapes of a large model, on this machine; what was found is kept for "
        "the next. 0: use those that are usually fastest.",
        rich_help_panel=_COMPILE,
    ),
]
MaxTokens: TypeAlias = Annotated[
    int, typer.Option("--max-tokens", help="Most tokens in one step.", rich_help_panel=_COMPILE)
]
MaxSequences: TypeAlias = Annotated[
    int, typer.Option("--max-sequences", help="Most sequences in one step.", rich_help_panel=_COMPILE)
]
Threads: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of the engine. Default: the cores that others leave free.",
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]
MaxContext: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        min=1,
        help="Most tokens of one conversation. Default: the model's, at most 8192.",
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
