"""serve."""

from __future__ import annotations

from typing import Annotated

import typer

from mlc.options import Options

from .options import EmbeddingQuant, KvType, MaxContext, Model, Quant, Target, Threads

_SERVER, _LIMITS = "Server", "Limits"


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    model: Model = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; 0.0.0.0 is the whole network.", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("-p", "--port", help="0: any that is free.", rich_help_panel=_SERVER)] = 1234,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="MLC_API_KEY",
            help="Refuse requests without this key.",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option("--model-name", help="Serve it under this name.", show_default=False, rich_help_panel=_SERVER),
    ] = None,
    quant: Quant = "none",
    embedding_quant: EmbeddingQuant = "auto",
    target: Target = "host",
    kv_type: KvType = "auto",
    threads: Threads = None,
    max_context: MaxContext = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            "--kv-tokens",
            min=1,
            help="Tokens of KV cache for all requests together. Default: twice --max-context.",
            show_default=False,
            rich_help_panel="Engine",
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option("--max-queue", help="Answers that may wait.", rich_help_panel=_LIMITS)
    ] = 1024,
    max_requests: Annotated[
        int, typer.Option("--max-requests", help="Requests served at the same time.", rich_help_panel=_LIMITS)
    ] = 256,
    log: Annotated[bool, typer.Option("--log", help="Log every request on stderr.", rich_help_panel=_SERVER)] = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's API does.

    \b
    [bold]Examples[/]
      mlc serve [dim]# the bundled model at http://127.0.0.1:1234/v1[/]
      mlc serve -m Qwen/Qwen3-0.6B --quant q4 -p 8000 --api-key secret
    """
    import logging

    from mlc.runtime.server.serve import serve as serve_artifact
    from mlc.runtime.server.settings import ServeSettings
    from mlc.runtime.settings import EngineSettings

    from .source import artifact

    settings = ServeSettings(
        host=host,
        port=port,
        model_name=model_name,
        api_key=api_key,
        engine=EngineSettings(max_queue=max_queue),
        threads=threads,
        max_context=max_context,
        kv_tokens=kv_tokens,
        max_requests=max_requests,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("sanic.error").setLevel(logging.ERROR)  # it warns of running in production
    if log:
        logging.getLogger("mlc.access").setLevel(logging.INFO)
    serve_artifact(
        artifact(model, Options(quant, target, kv_type, embedding_quant=embedding_quant)), settings, announce=_announce
    )


def _announce(text: str) -> None:
    print(text, flush=True)
