"""Every limit of the server, with a default that is safe on a laptop."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from mlc.errors import BadConfig

from ..settings import EngineSettings


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Raises `BadConfig`, naming the field."""

    host: str = "127.0.0.1"  # reachable from this machine only
    port: int = 1234  # 0: any that is free
    model_name: str | None = None  # under which the model is served; None: its own name
    api_key: str | None = field(default=None, repr=False)  # None: no key is asked for

    engine: EngineSettings = field(default_factory=EngineSettings)
    threads: int | None = None  # of the engine; None: the cores this process may use
    max_context: int | None = None  # tokens of one sequence; None: the model's, as `open_module` has it
    kv_tokens: int | None = None  # tokens of KV cache for all sequences; None: as `open_module` has it

    max_body_bytes: int = 10_000_000
    max_requests: int = 256  # that generate at the same time; more are refused with 429
    max_choices: int = 16  # answers to one prompt (n)
    max_prompts: int = 64  # of one completion request
    prompt_threads: int = 2  # that render templates and tokenize

    body_seconds: float = 30.0  # for a request's body to arrive
    write_seconds: float = 60.0  # for a client to read a piece of its answer
    keep_alive_seconds: float = 75.0  # that an idle connection stays open
    ping_seconds: float = 10.0  # between two comments in a stream that has nothing to tell yet
    answer_seconds: float = 3600.0  # for a whole answer that is not streamed
    start_seconds: float = 600.0  # for the engine to open
    stuck_seconds: float = 120.0  # of silence after which the engine counts as stuck
    drain_seconds: float = 30.0  # for running requests to end once the server is told to stop

    def __post_init__(self) -> None:
        if not self.host:
            raise BadConfig("host is empty; expected an address, 127.0.0.1 for this machine only")
        if not isinstance(self.port, int) or not 0 <= self.port <= 65535:
            raise BadConfig(f"port is {self.port!r}; expected 0 to 65535")
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise BadConfig("the API key is empty or not plain ASCII; HTTP clients could not send it")
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(setting.default, float) and not (isinstance(value, int | float) and 0 <= value < 1e9):
                raise BadConfig(f"{setting.name} is {value!r}; expected seconds, 0 or more")
            if setting.name.startswith("max_") or setting.name.endswith(("threads", "tokens")):
                if value is None and setting.default is None:
                    continue
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise BadConfig(f"{setting.name} is {value!r}; expected a whole number from 1")
