"""Templates that want too much, or what is not theirs: each ends soon, in little memory, with a named error."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest

import mlc.runtime.chat
from mlc.errors import MlcError
from mlc.runtime.chat import ChatTemplate, tojson
from mlc.runtime.meter import METER, Meter
from mlc.runtime.sandbox import SandboxEnvironment

MEMORY = 40 << 20  # bytes
SECONDS = 1.0  # of processor time

DOUBLE = "{%% set ns = namespace(a=%s) %%}{%% for i in range(60) %%}{%% set ns.a = %s %%}{%% endfor %%}"

GREEDY = {
    "a huge range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loops whose filter keeps nothing": (
        "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}"
    ),
    "recursive loops": (
        "{% for x in range(999) recursive %}{% if loop.depth < 4 %}{{ loop(range(999)) }}{% endif %}{% endfor %}"
    ),
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "text times a number": "{{ 'a' * 10**9 }}",
    "a list times a number": "{{ ([1] * 10**9) | length }}",
    "huge powers": "{{ 9**9**9 }}{{ (9**9)**(9**9) }}",
    "huge products": DOUBLE % ("9**999", "ns.a * ns.a"),
    "text doubled by ~": DOUBLE % ("'x'", "ns.a ~ ns.a") + "{{ ns.a }}",
    "text doubled by +": DOUBLE % ("'x'", "ns.a + ns.a") + "{{ ns.a }}",
    "text doubled by join": DOUBLE % ("'x'", "[ns.a, ns.a] | join"),
    "text doubled by replace": DOUBLE % ("'x'", "ns.a.replace('x', 'xx')"),
    "text doubled by blocks": "{% set a = 'x' %}" + "{% set b %}{{ a }}{{ a }}{% endset %}{% set a = b %}" * 60,
    "static text in a loop": "{% for i in range(100000) %}" + "y" * 1000 + "{% endfor %}",
    "join with a long separator": "{{ range(100000) | join('x' * 100000) }}{{ ('x' * 100000).join([''] * 100000) }}",
    "replacing nothing": "{{ ('x' * 100000).replace('', 'y' * 100000) }}",
    "replacing nothing by a filter": "{{ ('x' * 100000) | replace('', 'y' * 100000) }}",
    "a wide % format": "{{ '%1000000000d' % 1 }}",
    "a wide % format by argument": "{{ '%*d' % (1000000000, 1) }}",
    "a wide str.format": "{{ '{:>1000000000}'.format(1) }}",
    "a wide str.format by argument": "{{ '{:>{w}}'.format(1, w=10**9) }}",
    "a wide format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "a wide format filter": "{{ '%1000000000d' | format(1) }}",
    "many fields": "{{ ('{0}' * 10000).format('x' * 100000) }}{{ ('%s' * 9999) % (('x' * 99999,) * 9999) }}",
    "padding": "{{ 'a'.ljust(10**9) }}",
    "zeros": "{{ 'a'.zfill(10**9) }}",
    "indentation": "{{ ('a\n' * 1000) | indent(10**9) }}{{ messages | tojson(indent=10**9) }}",
    "rounding": "{{ 1.5 | round(10**9, 'ceil') }}",
    "bytes": "{{ (1).to_bytes(10**9) }}",
    "a wide date": "{{ strftime_now('%099999999d') }}",
    "shared lists as text": DOUBLE % ("['x']", "[ns.a, ns.a]") + "{{ ns.a }}",
    "shared tuples": DOUBLE % ("(1,)", "(ns.a, ns.a)") + "{{ ns.a }}",
    "shared mappings": DOUBLE % ("1", "{'a': ns.a, 'b': ns.a}") + "{{ ns.a | tojson }}",
    "shared mappings by dict": DOUBLE % ("1", "dict(a=ns.a, b=ns.a)") + "{{ ns.a }}",
    "shared tuples as a key": DOUBLE % ("(1,)", "(ns.a, ns.a)") + "{{ {ns.a: 1} }}",
    "shared tuples as an index": DOUBLE % ("(1,)", "(ns.a, ns.a)") + "{{ {}.get(ns.a) }}",
    "shared lists in an error": DOUBLE % ("[1]", "[ns.a, ns.a]") + "{{ messages[ns.a].x }}",
    "shared lists compared": DOUBLE % ("[1]", "[ns.a, ns.a]") + (DOUBLE % ("[1]", "[ns.a, ns.a]")).replace("ns", "m")
    + "{{ m.a == ns.a }}",
    "shared lists by filters": DOUBLE % ("[1]", "[ns.a, ns.a]") + "{{ ns.a | upper }}",
    "shared lists tested": DOUBLE % ("[1]", "[ns.a, ns.a]") + "{{ ns.a is upper }}",
    "a format by a test": "{{ '%1000000000d' is odd }}",
    "a product by rounding": "{{ 'a' | round(9, 'ceil') }}",
    "lists that are doubled": DOUBLE % ("[1]", "ns.a + ns.a"),
    "searching again and again": (
        "{% set l = range(100000) | list %}{% for i in l %}{% if -1 in l %}{% endif %}{% endfor %}"
    ),
    "tests again and again": (
        "{% set l = range(100000) | list %}{% for i in l %}{{ -1 is in(l) }}{{ l.count(-1) }}{% endfor %}"
    ),
    "generators again and again": (
        "{% for i in range(100000) %}{{ range(100000) | select('eq', -1) | list }}{% endfor %}"
    ),
    "slices again and again": (
        "{% set s = 'x' * 900000 %}{% for i in range(100000) %}{% set t = s[1:] %}{% endfor %}"
    ),
    "splitting again and again": (
        "{% set s = 'x' * 900000 %}{% for i in range(1000) %}{% set t = s.split('x') %}{% endfor %}"
    ),
    "a long list again and again": "{% for i in range(100000) %}{% set x = [" + "i," * 3000 + "] %}{% endfor %}",
    "sorting again and again": "{% for i in range(100000) %}{{ (range(100000) | sort)[0] }}{% endfor %}",
    "dumping again and again": "{% for i in range(100000) %}{{ messages | tojson }}{% endfor %}",
    "many arguments": "{% for i in range(100000) %}{{ cycler(*range(100000)).next() }}{% endfor %}",
    "long numbers": "{% for i in range(100000) %}{{ ('9' * 100000) | int }}{% endfor %}",
    "a long message of an error": "{{ raise_exception('x' * 100000000) }}",
}  # fmt: skip

CURIOUS = {
    "a class": "{{ ''.__class__.__mro__ }}",
    "a function's globals": "{{ namespace.__init__.__globals__ }}",
    "a namespace's class": "{% set ns = namespace() %}{% set ns.__class__ = 'x' %}",
    "a private name of a namespace": "{{ namespace(_x=1) }}",
    "changing the messages": "{{ messages.append(1) }}",
    "class methods": "{{ {}.fromkeys([1]) }}",
    "unknown methods": "{{ 'a'.encode() }}",
    "files by include": "{% include '/etc/passwd' %}",
    "files by import": "{% import 'os' as os %}",
    "files by extends": "{% extends 'base' %}",
    "adding lists by sum": "{{ [[1]] | sum(start=[]) }}",
}

MONSTERS = {
    "long source": "x" * 100_001,
    "deep brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep blocks": "{% if a %}" * 5000 + "{% endif %}" * 5000,
    "deep loops": "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "long chains": "{{ a" + ".b" * 5000 + " }}",
    "long numbers": "{{ " + "9" * 5000 + " }}",
    "unclosed": "{% for m in messages %}",
    "an unknown filter": "{{ 'a' | center(9) }}",
    "an unknown tag": "{% do x %}",
}


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlc.runtime.chat, "SECONDS", SECONDS)  # tracemalloc slows everything down


def cost(source: str) -> tuple[str, float, int]:
    """What rendering ends with, and what it took: processor seconds and bytes at once."""
    start = time.thread_time()
    text = ending(source)
    seconds = time.thread_time() - start
    tracemalloc.start()  # which makes everything several times slower
    ending(source)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return text, seconds, memory


def ending(source: str) -> str:
    """The text of a template, or the error it ends with."""
    try:
        return ChatTemplate(source).render([{"role": "user", "content": "hello " * 1000}])
    except MlcError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.alone
@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_template_is_stopped(name: str) -> None:
    text, seconds, memory = cost(GREEDY[name])
    assert text.startswith("InvalidRequest: the chat template ") and len(text) < 400, text[:400]
    assert seconds < 2 * SECONDS and memory < MEMORY, (seconds, memory)


@pytest.mark.parametrize("name", CURIOUS)
def test_a_curious_template_sees_nothing(name: str) -> None:
    text, _, _ = cost(CURIOUS[name])
    assert text.startswith("InvalidRequest: the chat template "), text[:400]


@pytest.mark.parametrize(
    "source",
    ["{{ messages.__class__ }}", "{{ '' | attr('__class__') }}", "{{ raise_exception.__globals__ }}",
     "{{ '{0.__class__}'.format(1) }}", "{{ self._TemplateReference__context }}"],
)  # fmt: skip
def test_internals_are_undefined(source: str) -> None:
    assert cost(source)[0] == ""


@pytest.mark.parametrize("name", MONSTERS)
def test_a_monstrous_source_is_refused_when_it_is_compiled(name: str) -> None:
    text, seconds, memory = cost(MONSTERS[name])
    assert text.startswith("BadCheckpoint: ") and len(text) < 400, text[:400]
    assert seconds < 2 * SECONDS and memory < MEMORY, (seconds, memory)


def test_many_messages_are_no_greed() -> None:
    source = """{%- set ns = namespace(all=[], last=-1) -%}
    {%- for message in messages -%}
        {%- set ns.all = ns.all + [message] -%}
        {%- if loop.index0 > ns.last and messages | length > loop.index0 and 'x' not in message.content -%}
            {{- message.role + ': ' + message.content | trim + '\n' -}}
        {%- endif -%}
    {%- endfor -%}{{ ns.all | length }}"""
    messages = [{"role": "user", "content": f"{i}"} for i in range(3000)]
    assert ChatTemplate(source).render(messages).endswith("user: 2999\n3000")


def units(source: str) -> int:
    """What rendering `source` costs where `l` is a list of 1000 numbers and `s` a text of 10 000 characters."""
    given = {"l": list(range(1000)), "s": "xy" * 5000}
    template = SandboxEnvironment().from_string(source)
    meter = Meter(given, 10.0)
    token = METER.set(meter)
    template.render(given)
    METER.reset(token)
    return meter.budget - meter.left


PRICES = {
    "{{ 1 }}": 1, "{{ s }}": 10_000, "text" * 100: 400, "{% set x = l[1:] %}": 999, "{% set x = s[1:] %}": 9999,
    "{% set x = [1, 2] %}": 64, "{% set x = (1, 2) %}": 64, "{% set x = {1: 2} %}": 250, "{% set x = l + l %}": 2000,
    "{% set x = s + s %}": 20_000, "{% set x = s ~ s %}": 20_000, "{% set x = s * 3 %}": 30_000,
    "{% set x = l == l %}": 1000, "{% set x = s < 'x' %}": 1000, "{% set x = 5 in l %}": 1000, "{{ l }}": 10_000,
    "{% set x = s.split('y') %}": 100_000, "{% set x = s | replace('x', 'zz') %}": 25_000,
    "{% set x = l | list %}": 1000, "{% set x = l | sort %}": 100_000,
    "{% set x = s | upper %}": 10_000, "{% for i in l %}{% endfor %}": 8000,
    "{% for i in l if false %}{% endfor %}": 8000, "{% set x = l | join(',') %}": 5000, "{% set x = dict(l=l) %}": 250,
    "{% set x = '%s' % s %}": 10_000, "{% set x = '{}'.format(s) %}": 10_000, "{% set x = 5 is in(l) %}": 1000,
}  # fmt: skip


@pytest.mark.parametrize("source", PRICES)
def test_an_operation_costs_by_the_size_of_its_data_and_always_the_same(source: str) -> None:
    assert PRICES[source] <= units(source) == units(source) < 1_000_000


def test_filters_and_methods_mean_what_jinja_means(assets: Path) -> None:
    cases = json.loads((assets / "jinja-vectors" / "llama.cpp-test-jinja.json").read_text())
    environment = SandboxEnvironment()
    environment.filters["tojson"] = tojson
    compared = 0
    for case in cases:
        if case["python_jinja2_matches"]:
            token = METER.set(Meter({}, 10.0))
            try:
                assert environment.from_string(case["template"]).render(case["vars"]) == case["expected"], case["name"]
            finally:
                METER.reset(token)
            compared += 1
    assert compared == 265
