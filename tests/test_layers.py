"""Who may import whom. The table is the architecture; this test is what keeps it true."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("ir", "frontend", "passes", "backends", "runtime", "tools")
COMPILER = {"errors", "ir", "frontend", "passes", "backends", "options"}
MAY_IMPORT = {  # a layer, or a module of mlc/: what it may import of mlc; "backends.module" is that module only
    "errors": set[str](),
    "ir": {"errors"},
    "frontend": {"errors", "ir"},
    "passes": {"errors", "ir"},
    "backends": {"errors", "ir"},
    "tools": {"errors", "ir"},
    "runtime": {"errors", "backends.module", "backends.artifact"},
    "options": {"errors"},
    "compile": COMPILER,
    "cache": COMPILER | {"compile"},
    "engine": {"errors", "options", "cache", "runtime"},
    "__init__": {"engine"},
    "__main__": {"cli"},
    "cli": COMPILER | {"compile", "cache", "engine", "runtime", "tools"},
}
COMPILERS_HOME = ("mlc.backends.tvm", "mlc.backends.cpu")  # where TVM may be imported
LINES = 400


def modules(root: Path) -> dict[str, Path]:
    """Every module by its full name, once: not again through the links mlc/ir -> ../ir and so on."""
    found: dict[str, Path] = {}
    for folder in ("mlc", *LAYERS):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if folder == "mlc" and len(parts) > 2 and parts[1] in LAYERS:
                continue
            name = ".".join(parts if folder == "mlc" else ("mlc", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """What a module imports, wherever in it: (full name of a module, whether it is written as a relative import)."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in known else base), node.level > 0


def layer_of(module: str) -> str:
    """`mlc.ir.types` lies in `ir`, `mlc` itself in `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def breaches(root: Path) -> list[str]:
    """Every import that the table forbids."""
    found: list[str] = []
    known = modules(root)
    for name, path in known.items():
        layer = layer_of(name)
        if layer not in MAY_IMPORT:
            found.append(f"{name}: add {layer} to the table of layers")
            continue
        for target, relative in imports(name, path, known):
            package, _, rest = target.partition(".")
            if package in LAYERS:
                found.append(f"{name}: write mlc.{target}, not {target}")
            elif package == "tvm" and not name.startswith(COMPILERS_HOME):
                found.append(f"{name}: TVM is imported in {' and '.join(COMPILERS_HOME)} only")
            elif package == "tvm_ffi" and layer != "backends":
                found.append(f"{name}: tvm_ffi is imported in mlc.backends only")
            elif package == "mlc" and rest and layer_of(target) == layer:
                if not relative and layer in LAYERS:
                    found.append(f"{name}: use a relative import of {target} inside {layer}/")
            elif package == "mlc" and rest:
                allowed = MAY_IMPORT[layer]
                if relative and (layer in LAYERS or layer_of(target) in LAYERS):
                    found.append(f"{name}: import {target} by its full name")
                if layer_of(target) not in allowed and ".".join(rest.split(".")[:2]) not in allowed:
                    found.append(f"{name}: {layer} may not import {target}")
    return found


def cycle(root: Path) -> list[str]:
    """Modules that import each other in a circle, in order, or nothing. Imports for type checking count.

    `mlc` itself is left out: everybody may read its `__version__`, and it loads the engine on first use.
    """
    known = modules(root)
    edges = {
        name: [target for target, _ in imports(name, path, known) if target in known and target not in ("mlc", name)]
        for name, path in known.items()
    }
    done: set[str] = set()

    def search(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in edges[name]:
            if found := search(target, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in edges if (found := search(name, []))), [])


def long_files(root: Path) -> list[str]:
    paths = [*modules(root).values(), *sorted((root / "tests").rglob("*.py"))]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{path.relative_to(root)} has {lines} lines" for path, lines in lengths.items() if lines > LINES]


def test_every_import_is_in_the_table() -> None:
    assert breaches(ROOT) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle(ROOT) == []


def test_no_file_is_longer_than_400_lines() -> None:
    assert long_files(ROOT) == []


def test_all_layers_are_seen() -> None:
    seen = {layer_of(name) for name in modules(ROOT)}
    assert seen >= set(LAYERS) | {"errors", "__init__", "__main__"}


@pytest.mark.parametrize(
    ("file", "line", "breach"),
    [
        ("ir/a.py", "from mlc.passes import fuse", "mlc.ir.a: ir may not import mlc.passes"),
        ("ir/a.py", "import tvm.tirx", "mlc.ir.a: TVM is imported in mlc.backends.tvm and mlc.backends.cpu only"),
        ("runtime/a.py", "import tvm_ffi", "mlc.runtime.a: tvm_ffi is imported in mlc.backends only"),
        ("runtime/a.py", "from mlc.backends.cpu import b", "mlc.runtime.a: runtime may not import mlc.backends.cpu"),
        ("runtime/a.py", "from mlc import ir", "mlc.runtime.a: runtime may not import mlc.ir"),
        ("passes/a.py", "import mlc.passes", "mlc.passes.a: use a relative import of mlc.passes inside passes/"),
        ("passes/a.py", "from ..ir import c", "mlc.passes.a: import mlc.ir by its full name"),
        ("passes/a.py", "import ir.types", "mlc.passes.a: write mlc.ir.types, not ir.types"),
        ("tools/a.py", "def f():\n    import mlc.compile", "mlc.tools.a: tools may not import mlc.compile"),
        ("mlc/compile.py", "from .cli import main", "mlc.compile: compile may not import mlc.cli"),
        ("mlc/extra.py", "", "mlc.extra: add extra to the table of layers"),
    ],
)  # fmt: skip
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, line: str, breach: str) -> None:
    plant(tmp_path, {"ir/__init__.py": "", "mlc/cli.py": "", "passes/__init__.py": "", file: line})
    assert breaches(tmp_path) == [breach]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("ir/a.py", "from mlc.errors import BadGraph"),
        ("ir/a.py", "from .ops import b"),
        ("backends/cpu/a.py", "import tvm"),
        ("backends/a.py", "import tvm_ffi\nfrom mlc.ir.types import Tensor"),
        ("runtime/server/a.py", "from mlc.backends.module import open_module\nfrom ..engine import Engine"),
        ("mlc/cli/a.py", "from mlc import __version__\nfrom mlc.tools import show\nfrom .b import c"),
    ],
)
def test_an_allowed_import_is_not(tmp_path: Path, file: str, line: str) -> None:
    plant(tmp_path, {file: line})
    assert breaches(tmp_path) == []


def test_a_circle_is_found_inside_a_layer_too(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "ir/a.py": "from . import b",
            "ir/b.py": "def f():\n    from .c import d",
            "ir/c.py": "if TYPE_CHECKING:\n    from .a import e",
        },
    )
    assert cycle(tmp_path) == ["mlc.ir.a", "mlc.ir.b", "mlc.ir.c", "mlc.ir.a"]


def test_a_long_file_is_found(tmp_path: Path) -> None:
    plant(tmp_path, {"ir/a.py": "x = 1\n" * 401, "ir/b.py": "x = 1\n" * 400})
    assert long_files(tmp_path) == ["ir/a.py has 401 lines"]


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    "module",
    ["mlc", "mlc.errors", "mlc.cli.commands", "mlc.runtime.api", "mlc.runtime.server.serve", "mlc.backends.module"],
)
def test_importing_loads_no_compiler_and_no_pytorch(module: str) -> None:
    """TVM's compiler is 259 MB, PyTorch an extra: neither is needed to talk to a model."""
    heavy = {"tvm", "torch", "transformers"}
    program = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (result.stdout.strip(), result.stderr, result.returncode) == ("", "", 0)
