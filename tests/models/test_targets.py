"""Targets other than the host's best: those this machine can run give the same answers, the others say so."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from mlc.backends import artifact as artifacts
from mlc.backends.artifact import read_manifest
from mlc.backends.cpu.isa import ISAS, host_features
from mlc.backends.module import open_module
from mlc.errors import TargetUnavailable, WrongTarget

TOKENS = [(i * 37 + i * i) % 211 for i in range(40)]


@pytest.mark.parametrize("quant", ["none", "q4", "q8"])
@pytest.mark.parametrize("target", [name for name, isa in ISAS.items() if isa.architecture == "x86_64"])
def test_a_named_target_gives_the_same_logits(target, quant, checkpoint, compiled, runner):
    if not host_features().issuperset(ISAS[target].features):
        pytest.skip(f"this CPU is no {target}")
    folder = checkpoint("llama").folder
    ours = runner(compiled(folder, quant=quant, target=target)).logits(TOKENS, 40)
    host = runner(compiled(folder, quant=quant)).logits(TOKENS, 40)
    assert np.abs(ours - host).max() < 2e-3 * np.abs(host).max()
    assert runner(compiled(folder, quant=quant, target=target)).logits(TOKENS, 9).tobytes() == ours.tobytes()


def test_an_artifact_for_another_machine_is_refused_with_its_name(checkpoint, compiled):
    artifact = compiled(checkpoint("llama").folder, target="neon")
    assert read_manifest(artifact).target.architecture == "aarch64"
    with pytest.raises(WrongTarget, match="compiled for aarch64"):
        open_module(artifact)


@pytest.mark.skipif("amx-tile" in host_features(), reason="this CPU has AMX")
def test_an_artifact_for_amx_is_refused_where_the_cpu_or_linux_has_none(checkpoint, compiled, monkeypatch):
    artifact = compiled(checkpoint("llama").folder, quant="q4", target="avx512_amx")
    with pytest.raises(WrongTarget, match=r"compiled for avx512_amx and needs amx-int8, amx-tile, "):
        open_module(artifact)
    monkeypatch.setattr(artifacts, "cpu_features", lambda: frozenset(ISAS["avx512_amx"].features))
    with pytest.raises(WrongTarget, match="does not let this process use AMX's tile registers"):
        open_module(artifact)


def test_an_unknown_target_names_those_there_are(checkpoint, compiled):
    with pytest.raises(TargetUnavailable, match="avx2"):
        compiled(checkpoint("llama").folder, target="avx9")


def test_a_machine_without_a_c_compiler_compiles_when_it_loads(checkpoint, compiled, runner, monkeypatch):
    folder = checkpoint("llama").folder
    expected = runner(compiled(folder)).logits(TOKENS, 40)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    artifact = compiled(folder, max_sequences=63)
    assert read_manifest(artifact).library.endswith(".ll")
    assert runner(artifact).logits(TOKENS, 40).tobytes() == expected.tobytes()
