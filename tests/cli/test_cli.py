"""What needs no compiled model: help, errors, exit codes, what is imported, graphs as text."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mlc import __version__, cache
from mlc.backends.cpu.isa import ISAS
from mlc.cache import BUNDLED, key
from mlc.cli.commands import app
from mlc.errors import ParseError
from mlc.ir import parse_graph, verify
from mlc.options import Options

Mlc = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = ("run", "compile", "serve", "bench", "show", "diff", "doctor")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["serve", "--help"], ["run", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom mlc.cli.commands import app\n"
        f"try:\n    app({arguments!r}, prog_name='mlc')\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = 'tvm tvm_ffi numpy torch sanic tokenizers transformers huggingface_hub prompt_toolkit'.split()\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_importing_the_package_imports_nothing_else() -> None:
    script = (
        "import sys; before = set(sys.modules); import mlc; import mlc.errors\n"
        "print(sorted(m for m in set(sys.modules) - before if m.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['mlc', 'mlc.errors']"


def test_the_version_is_that_of_the_package(mlc: Mlc) -> None:
    assert mlc("--version").stdout == f"mlc {__version__}\n"


def test_without_arguments_the_commands_are_listed(cli: Mlc) -> None:
    shown = cli()
    assert all(f" {command} " in shown.stdout + shown.stderr for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert command == "doctor" or f"mlc {command}" in result.output.replace("Usage: mlc", "").replace("\n", " ")


def test_a_misspelt_option_or_command_gets_a_suggestion(cli: Mlc) -> None:
    option, command = cli("serve", "--quan", "q4"), cli("srve")
    assert (option.returncode, command.returncode) == (2, 2)
    assert "--quant" in option.stderr and "'serve'" in command.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "./nowhere"], "./nowhere does not exist"),
        (["show", "graph.ir"], "graph.ir cannot be read"),
        (["show", "--quant", "q5"], "'q5' is unknown; mlc has none, q8"),
        (["show", "--embedding-quant", "q3"], "--embedding-quant 'q3' is unknown; mlc has auto, none, q8"),
        (["show", "--stage", "packed", "--target", "z80"], "'z80' is unknown; mlc has host"),
        (["compile", "-o", "x", "--max-sequences", "0"], "--max-sequences must be at least 1"),
        (["diff", "one.ir"], "two .ir files, or one model with --stages"),
        (["bench", "--prompt-len", "12,x"], "--prompt-len must be a whole number or a list"),
        (["bench", "--prompt-len", "0", "--gen-len", "0"], "nothing to measure"),
        (["serve", "--port", "70000"], "port is 70000"),
        (["run", "-i", "  "], "the input is empty"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(cli: Mlc, arguments: list[str], says: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(rf"error: .*{re.escape(says)}.*\n", done.stderr), done.stderr


def test_debug_shows_the_traceback(cli: Mlc) -> None:
    assert "Traceback" in cli("show", "./nowhere", MLC_DEBUG="1").stderr


def _exit_code_of(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("mlc.cli.source.graph", broken)
    result = CliRunner().invoke(app, ["show"])
    return result.exit_code, result.stderr


def test_our_own_faults_are_exit_code_1_and_say_how_to_report_them(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = _exit_code_of(KeyError("oops"), monkeypatch)
    assert code == 1 and said.startswith("error: KeyError: 'oops' (an error of mlc itself") and "MLC_DEBUG=1" in said


def test_an_error_of_several_lines_stays_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = _exit_code_of(ParseError("bad", line=1, column=3, text="[red]x"), monkeypatch)
    assert (code, said) == (2, "error: line 1, column 3: bad\n  [red]x\n    ^\n")


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _exit_code_of(KeyboardInterrupt(), monkeypatch) == (130, "")


def test_a_reader_that_stops_reading_is_no_error(environment: dict[str, str]) -> None:
    command = f"{sys.executable} -m mlc show | head -n 1"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("graph forward(") and done.stderr == ""


@pytest.mark.parametrize("stage", ["frontend", "fused", "quantized", "activations", "packed", "folded", "conversion"])
def test_every_stage_prints_text_that_reads_back(cli: Mlc, stage: str) -> None:
    done = cli("show", "--stage", stage, "--quant", "q4")
    graph = verify(parse_graph(done.stdout))
    assert f"{graph}\n" == done.stdout
    assert ("q4_g32" in done.stdout) == (stage not in ("frontend", "fused"))


@pytest.mark.parametrize(
    ("options", "table", "others"),
    [
        ((), "f16", {"f16"}),
        (("--quant", "q6"), "q8_g32", {"q6_g32"}),
        (("--quant", "q4", "--embedding-quant", "q6"), "q6_g32", {"q4_g32"}),
        (("--quant", "q4", "--embedding-quant", "none"), "f16", {"q4_g32"}),
        (("--embedding-quant", "q4"), "q4_g32", {"f16"}),
    ],
)
def test_the_embedding_table_has_a_number_format_of_its_own(
    cli: Mlc, options: tuple[str, ...], table: str, others: set[str]
) -> None:
    rows = json.loads(cli("show", "--stats", "--json", *options).stdout)["ops"]
    read = {(row["op"], row["reads"].partition("[")[0]): row for row in rows if row["op"] in ("embed", "linear")}
    assert {dtype for op, dtype in read if op == "embed"} == {table}
    assert {dtype for op, dtype in read if op == "linear"} == {table, *others}  # the head reads the same table


def test_a_cached_model_is_one_for_each_choice_of_options() -> None:
    other: dict[str, Any] = {"quant": "q6", "embedding_quant": "q6", "target": "neon", "kv_type": "q8", "max_tokens": 9}
    other |= {"max_sequences": 9, "tune": 0.0}
    assert other.keys() == {f.name for f in fields(Options)}
    keys = {key(BUNDLED, Options()), *(key(BUNDLED, replace(Options(), **{name: v})) for name, v in other.items())}
    assert len(keys) == 1 + len(other)


def test_a_process_without_tile_registers_does_not_find_what_was_compiled_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "cpu_features", lambda: frozenset(ISAS["avx512_amx"].features))
    keys = []
    for granted in (True, False):
        monkeypatch.setattr(cache, "may_use_tiles", lambda granted=granted: granted)
        keys += [key(BUNDLED, Options()), key(BUNDLED, replace(Options(), target="neon"))]
    assert keys[0] != keys[2] and keys[1] == keys[3]


def test_a_graph_can_be_edited_and_compared(cli: Mlc, tmp_path: Path) -> None:
    text = cli("show").stdout
    one, other = tmp_path / "one.ir", tmp_path / "other.ir"
    one.write_text(text)
    other.write_text(text.replace("window=0", "window=8", 1))
    assert cli("show", one).stdout == text
    same, different = cli("diff", one, one), cli("diff", one, other)
    assert (same.returncode, same.stdout) == (0, "")
    assert different.returncode == 1
    changed = [line for line in different.stdout.splitlines() if re.match(r"[-+] ", line)]
    assert len(changed) == 2 and "window=0" in changed[0] and "window=8" in changed[1]


def test_stages_of_a_model_are_compared(cli: Mlc) -> None:
    done = cli("diff", str(ROOT / "mlc" / "bundled"), "--stages", "frontend", "fused")
    assert done.returncode == 1 and done.stdout.startswith("--- bundled (frontend)\n+++ bundled (fused)\n@@ ")
    assert re.search(r"^\+.* = swiglu\(", done.stdout, re.MULTILINE)


def test_a_graph_with_an_error_is_refused_with_its_place(cli: Mlc, tmp_path: Path) -> None:
    file = tmp_path / "bad.ir"
    file.write_text("graph g(%x: f32[n]) {\n  %0: f32[n] = frobnicate(%x)\n  return %0\n}\n")
    done = cli("show", file)
    assert done.returncode == 2 and "line 2, column 16: unknown op 'frobnicate'" in done.stderr


def test_statistics_add_up_and_count_every_parameter(cli: Mlc) -> None:
    told = json.loads(cli("show", "--stats", "--json", "--quant", "q4").stdout)
    for name in ("calls", "parameters", "weights", "activations", "cache", "operations"):
        assert told["total"][name] == pytest.approx(sum(row[name] for row in told["ops"]))
    shapes = re.findall(r"weight\(\) \{.*?shape=\(([\d, ]+)\)", cli("show").stdout)
    sizes = [[int(d) for d in shape.split(",") if d.strip()] for shape in shapes]
    assert told["total"]["parameters"] == sum(size[0] * (size[1] if len(size) > 1 else 1) for size in sizes)
    table = cli("show", "--stats", "--quant", "q4")
    assert table.stdout.split()[:8] == "op weight calls parameters weights activations KV operations".split()  # noqa: SIM905
    assert "one decode step" in table.stderr


def test_doctor_finds_this_machine_fit(mlc: Mlc, environment: dict[str, str]) -> None:
    told = json.loads(mlc("doctor", "--json").stdout)
    assert told["healthy"], told
    found = {check["name"]: check["found"] for check in told["checks"]}
    assert found["mlc"].startswith(__version__) and found["tvm self-test"] == "passed"
    assert environment["MLC_CACHE"] in found["cache"] and found["hugging face"].endswith("offline")
    assert {"target", "cpu", "cores", "memory", "C compiler", "torch", "apache-tvm-ffi"} <= found.keys()


def test_shells_complete_commands_and_options(cli: Mlc) -> None:
    def completed(words: str) -> list[str]:
        variables = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_MLC_COMPLETE": "complete_bash"}
        return cli(**variables).stdout.split()

    assert completed("mlc se") == ["serve"]
    assert completed("mlc serve --qu") == ["--quant"]
    assert completed("mlc run --quant q4") == ["q4", "q4a"]


def test_compiling_never_overwrites_what_is_no_compiled_model(cli: Mlc, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = cli("compile", "-o", tmp_path)
    assert done.returncode == 2 and "no compiled model" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_every_command_in_the_readme_is_one_we_have() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [part for block in blocks for line in block.splitlines() for part in re.split(r"&&|\|", line)]
    commands = [shlex.split(line, comments=True) for line in lines if "mlc" in line]
    ours = [words[words.index(name) + 1 :] for words in commands for name in words if Path(name).name == "mlc"]
    assert len(ours) > 15
    group = typer.main.get_group(app)
    for words in ours:
        command = group.get_command(group.make_context("mlc", list(words)), words[0])
        assert command is not None, words
        command.make_context(words[0], words[1:])  # raises where an option does not exist
