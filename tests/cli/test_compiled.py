"""Commands on compiled models: run, bench, show, serve."""

from __future__ import annotations

import json
import mmap
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI

from mlc.backends.module import open_module
from mlc.cache import BUNDLED, key
from mlc.ir import parse_graph, verify
from mlc.options import Options
from mlc.runtime.engine import Engine
from mlc.runtime.sampling import SamplingParams
from mlc.runtime.tokenizer import Tokenizer

Mlc = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


def test_one_shot_prints_the_answer_alone(mlc: Mlc, tiny: Path) -> None:
    done = mlc("run", "-m", tiny, "-i", "What is the capital of France?")
    assert (done.returncode, done.stdout, done.stderr) == (0, "The capital of France is Paris.\n", "")


def test_a_pipe_is_answered_and_the_numbers_go_to_stderr(mlc: Mlc, tiny: Path) -> None:
    done = mlc("run", "-m", tiny, "-i", "-", "-v", stdin="What is the capital of France?\n")
    assert done.stdout == "The capital of France is Paris.\n"
    assert re.fullmatch(r"Prompt: \d+ tokens, [\d.]+ T/s · Decode: \d+ tokens, [\d.]+ T/s\n", done.stderr)
    assert mlc("run", "-m", tiny, stdin="What is the capital of France?").stdout == done.stdout


def test_the_bundled_model_is_compiled_once_and_then_reused(
    mlc: Mlc, environment: dict[str, str], tmp_path: Path
) -> None:
    first = mlc("run", "-i", "Hello!", MLC_CACHE=str(tmp_path))
    second = mlc("run", "-i", "Hello!", MLC_CACHE=str(tmp_path))
    assert first.stdout == second.stdout != ""
    assert re.search(r"^compiled mlc-tiny in [\d.]+ s into ", first.stderr, re.MULTILINE)
    assert re.fullmatch(r"reusing the compiled model in .*\n", second.stderr)


def test_a_weights_file_with_its_config_beside_it_is_a_model(mlc: Mlc, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "some-model"))
    weights = folder / "model.safetensors"
    out = tmp_path / "out"
    assert mlc("compile", weights, "-o", out).returncode == 0
    question = ("-i", "What is the capital of France?")
    assert mlc("run", "-m", out, *question).stdout == mlc("run", "-m", tiny, *question).stdout
    assert json.loads((out / "manifest.json").read_text())["name"] == "some-model"
    before = key(weights, Options())
    (folder / "config.json").write_text("{}")
    assert key(weights, Options()) != before  # what lies beside it belongs to it
    (folder / "config.json").unlink()
    done = mlc("compile", weights, "-o", tmp_path / "none")
    assert done.returncode == 2 and "model.safetensors has no config.json beside it" in done.stderr


def test_a_model_compiled_before_the_manifest_was_json_is_to_be_compiled_again(mlc: Mlc, tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_text("format: 4\n")
    for command in (("run", "-i", "Hello!", "-m"), ("show",), ("bench", "-m")):
        done = mlc(*command, tmp_path)
        assert done.returncode == 2 and "was compiled by an older mlc (manifest.yaml); compile" in done.stderr


RUNNING = """
import sys
from mlc.runtime.api import Engine
from mlc.runtime.tokenizer import Tokenizer
opened, open_tokenizer = [], Tokenizer.open
Tokenizer.open = staticmethod(lambda folder: opened.append(folder) or open_tokenizer(folder))
with Engine(sys.argv[1]) as engine:
    print(engine.chat("What is the capital of France?"))
print(len(opened))
print(*sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2:])))
with open("/proc/self/maps") as maps:
    print(*sorted({line.split("/")[-1].strip() for line in maps if "libtvm" in line or "LLVM" in line}))
"""


def test_answering_loads_neither_the_compiler_nor_what_only_other_commands_need(tiny: Path) -> None:
    heavy = ["tvm", "tvm_ffi", "torch", "transformers", "huggingface_hub", "yaml"]
    heavy += ["typer", "rich", "sanic", "prompt_toolkit"]
    done = subprocess.run(
        [sys.executable, "-c", RUNNING, tiny, *heavy], capture_output=True, text=True, timeout=120, check=True
    )
    answer, tokenizers_opened, modules, libraries = done.stdout.split("\n")[:4]
    assert answer == "The capital of France is Paris."
    assert tokenizers_opened == "1"
    assert modules == ""
    assert libraries == "libtvm_ffi.so libtvm_runtime.so"


def test_a_side_of_a_benchmark_loads_nothing_of_the_command() -> None:
    script = (
        "import sys, mlc.cli.bench_engine\n"
        "print({'typer', 'rich', 'tokenizers', 'jinja2', 'tvm', 'tvm_ffi', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "set()\n"


def test_a_short_conversation_takes_little_of_the_memory_of_the_cache(tiny: Path) -> None:
    """Each layer's own 2 MB for keys, and for values, would be 20 MB."""
    model = open_module(tiny, kv_tokens=1 << 20)
    for _ in Engine(model, Tokenizer.open(tiny)).generate("Hello", SamplingParams(max_tokens=4)):
        pass
    places = [array.ctypes.data for (kind, _), array in model.executor._memory.items() if kind == "kv"]
    page = mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(min(places) // page * 8)
        entries = np.fromfile(pagemap, np.uint64, (1 << 20) * model.kv_bytes // page)
    committed = int((entries >> np.uint64(63)).sum()) * page
    assert len(places) == 10 and 0 < committed <= 2 << 20


def test_sampling_options_reach_the_sampler(cli: Mlc, tiny: Path) -> None:
    def story(*options: str) -> str:
        return cli("run", "-m", tiny, "-i", "Tell me a story about a dog.", "--max-tokens", "30", *options).stdout

    assert story("--temperature", "1.5", "--seed", "1") == story("--temperature", "1.5", "--seed", "1")
    assert story("--temperature", "1.5", "--seed", "1") != story("--temperature", "1.5", "--seed", "2")
    assert story("--temperature", "1.5", "--top-k", "1") == story("--temperature", "0")
    assert len(story("--max-tokens", "3")) < len(story())
    assert cli("run", "-m", tiny, "-i", "x", "--top-p", "2").returncode == 2


def test_a_prompt_that_does_not_fit_is_one_line(cli: Mlc, tiny: Path) -> None:
    done = cli("run", "-m", tiny, "-i", "word " * 50, "--max-context", "20")
    assert done.returncode == 2 and "context holds 20" in done.stderr and done.stderr.count("\n") == 1


def test_a_model_without_template_continues_the_text_and_says_so(mlc: Mlc, assets: Path) -> None:
    model = assets / "stories260k" / "stories260K-f32.gguf"
    done = mlc("run", "-m", model, "-i", "Once upon a time", "--temperature", "0", "--max-tokens", "11")
    assert done.stdout == ", there was a little girl named Lily.\n"
    assert "no chat template: it continues your text" in done.stderr
    assert mlc("run", "-m", model, "-i", "x", "--system", "y").returncode == 2


def test_a_compiled_model_is_not_compiled_again(cli: Mlc, tiny: Path, tmp_path: Path) -> None:
    done = cli("compile", tiny, "-o", tmp_path / "again")
    assert done.returncode == 2 and "compiled already" in done.stderr


def test_options_that_come_too_late_are_refused(cli: Mlc, tiny: Path) -> None:
    for command, option in ((["run", "-i", "x"], "--quant"), (["bench"], "--embedding-quant"), (["serve"], "--quant")):
        done = cli(*command, "-m", tiny, option, "q4")
        assert done.returncode == 2 and "--embedding-quant, --target and --kv-type come too late" in done.stderr


def test_a_damaged_compiled_model_says_what_to_do(cli: Mlc, tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    (copy / "config.json").write_text("{}")
    done = cli("run", "-m", copy, "-i", "Hello!")
    assert done.returncode == 2 and "does not match its digest; compile the model again" in done.stderr


def test_bench_measures_and_prints_for_people_and_programs(cli: Mlc, tiny: Path) -> None:
    sizes = ("--prompt-len", "16,32", "--gen-len", "8", "--depth", "4", "--iterations", "2", "--warmup", "0")
    told = json.loads(cli("bench", "-m", tiny, *sizes, "--json", "--threads", "1").stdout)
    assert [(r["test"], r["prompt"], r["generated"]) for r in told["results"]] == [
        ("prefill", 16, 1),
        ("prefill", 32, 1),
        ("decode", 4, 8),
    ]
    assert all(r["tokens_per_second"] > 0 and len(r["rates"]) == 2 for r in told["results"])
    assert told["threads"] == 1 and told["machine"]["cores"] >= 1 and told["quantization"] == "none"
    shown = cli("bench", "-m", tiny, *sizes).stdout
    assert shown.startswith("Benchmark Results\n=================\nModel: ")
    rate = r"│ +[\d.]+ ± [\d.]+( \*)? │ +[\d.]+ ms"
    assert re.search(rf"│ TTFT \(32 input tokens\) +{rate} TTFT │ +[\d.]+ Gop/s, \d+ % │", shown)
    assert re.search(rf"│ Decode \(8 tokens @ d4\) +{rate} TPOT │ +[\d.]+ GB/s, \d+ % │", shown)
    assert "model has 1024" in cli("bench", "-m", tiny, "--prompt-len", "2000").stderr


def test_a_compiled_model_shows_what_it_is_made_of(cli: Mlc, tiny: Path) -> None:
    assert "llama" in cli("show", tiny).stdout and "weights.safetensors (" in cli("show", tiny).stdout
    assert json.loads(cli("show", tiny, "--json").stdout)["name"] == "mlc-tiny"
    for stage in ("folded", "conversion"):
        verify(parse_graph(cli("show", tiny, "--stage", stage).stdout))
    assert "keeps the stages folded, conversion" in cli("show", tiny, "--stage", "fused").stderr
    calls = cli("show", tiny, "--program").stdout.splitlines()
    names = [line.split()[0] for line in cli("show", tiny, "--kernels").stdout.splitlines()[2:]]
    assert {line.split()[2].partition("(")[0] for line in calls} == set(names)
    vector = next(name for name in names if name.startswith("linear"))
    assembly = cli("show", tiny, "--kernel", vector)
    assert assembly.stdout.startswith(f"{vector}_compute_:\n") and "\tret" in assembly.stdout
    wrong = cli("show", tiny, "--kernel", vector[:-1])
    assert wrong.returncode == 2 and f"did you mean {vector}" in wrong.stderr


class Terminal:
    """`mlc` on a pseudo-terminal: what it prints, and somebody who types."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlc", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        """At the next prompt: what is typed before that is for the terminal's own line editor."""
        self.wait_for("\x1b[?2004h")
        os.write(self.ours, text.encode())

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Read until `text` has come since the last such call."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"waited for {text!r}, saw {self.seen!r}"
            try:
                self.seen += os.read(self.ours, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                assert text in self.seen, f"waited for {text!r}, saw {self.seen!r}"
        self.seen = self.seen.partition(text)[2]

    def close(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.ours)


def test_a_conversation_at_a_terminal(tiny: Path, environment: dict[str, str], tmp_path: Path) -> None:
    terminal = Terminal(["run", "-m", str(tiny)], {**environment, "MLC_CACHE": str(tmp_path)})
    terminal.wait_for("/help lists commands")
    terminal.type("What is the capital of France?\r")
    terminal.wait_for("The capital of France is Paris.")
    terminal.wait_for("Decode: ")
    terminal.type("/nonsense\r")
    terminal.wait_for("no command /nonsense")
    terminal.type(f"/save {tmp_path}/talk.json\r")
    terminal.wait_for("saved 2 messages")
    terminal.type("\x04")
    assert terminal.close() == 0
    assert json.loads((tmp_path / "talk.json").read_text())[1]["content"] == "The capital of France is Paris."
    assert "+What is the capital of France?" in (tmp_path / "history").read_text()


def test_ctrl_c_at_the_prompt_leaves(tiny: Path, environment: dict[str, str]) -> None:
    terminal = Terminal(["run", "-m", str(tiny)], environment)
    terminal.type("\x03")
    assert terminal.close() == 0


@pytest.fixture(scope="module")
def server(tiny: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of `mlc serve` on a free port, with an API key."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlc",
            "serve",
            "-m",
            str(tiny),
            "-p",
            "0",
            "--api-key",
            "sesame",
            "--model-name",
            "pip",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None and process.stderr is not None
    banner = process.stdout.readline()
    found = re.search(r"Serving pip at (http://127\.0\.0\.1:\d+/v1)", banner)
    assert found, banner + process.stderr.read()
    yield found[1]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_the_served_model_answers_the_openai_client(server: str) -> None:
    with OpenAI(base_url=server, api_key="sesame") as client:
        assert [m.id for m in client.models.list()] == ["pip"]
        answer = client.chat.completions.create(
            model="pip", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
        )
    assert answer.choices[0].message.content == "The capital of France is Paris."


def test_strangers_are_turned_away(server: str) -> None:
    import openai

    with pytest.raises(openai.AuthenticationError), OpenAI(base_url=server, api_key="x", max_retries=0) as client:
        client.models.list()


def test_a_port_in_use_is_one_line(cli: Mlc, tiny: Path, server: str) -> None:
    port = server.split(":")[2].partition("/")[0]
    done = cli("serve", "-m", tiny, "-p", port)
    assert done.returncode == 2 and re.match(rf"error: cannot listen at 127.0.0.1 port {port}.*--port", done.stderr)


def test_the_openai_example_runs(server: str, environment: dict[str, str]) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "openai_client.py"
    assert 'api_key="none"' in example.read_text()
    text = example.read_text().replace('api_key="none"', 'api_key="sesame"')
    done = subprocess.run(
        [sys.executable, "-c", text, server], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("The capital of France is Paris.\n"), done.stderr
