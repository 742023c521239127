"""A real server over HTTP, asked by the `openai` client."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.runtime.server.conftest import HERE, Server, StartServer, until

HI = [{"role": "user", "content": "Hi"}]
RENDERED = "user: Hi\nassistant: "  # what the toy template makes of it


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    """Untyped on purpose: tests send what its types would refuse."""
    return server.client()


@pytest.fixture(scope="module")
def greedy(toy: Any) -> Callable[..., str]:
    """The model's own greedy text after a prompt, from its definition: no server, no engine, no pages."""

    def generate(prompt: str, count: int) -> str:
        model, text = toy.ToyModel(1, 0.0), list(prompt.encode())
        for _ in range(count):
            logits = np.full(model.vocab, -30.0, np.float32)
            model.read(np.array(text, np.int32), logits)
            text.append(int(logits.argmax()))
            if text[-1] == toy.END:
                break
        return bytes(t for t in text[len(prompt.encode()) :] if t < toy.END).decode(errors="replace")

    return generate


def test_a_chat_is_rendered_answered_and_counted(client: Any, greedy: Callable[..., str]) -> None:
    answer = client.chat.completions.create(model="toy/model", messages=HI, temperature=0, max_tokens=12)
    assert answer.choices[0].message.content == greedy(RENDERED, 12)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.role) == ("length", "assistant")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(RENDERED), 12)
    assert answer.model == "toy/model" and answer.id.startswith("chatcmpl-") and answer.system_fingerprint == "toy-1"
    assert abs(answer.created - time.time()) < 60


def test_a_chat_that_the_model_ends_stops_there(client: Any, greedy: Callable[..., str]) -> None:
    answer = client.chat.completions.create(model="default", messages=HI, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == greedy(RENDERED, 1000)
    assert answer.usage.completion_tokens == 64 - len(RENDERED) + 1, "the end token counts"
    longer = client.chat.completions.create(
        model="default", messages=HI, temperature=0, max_tokens=60, extra_body={"ignore_eos": True}
    )
    assert longer.choices[0].finish_reason == "length" and longer.usage.completion_tokens == 60


def test_a_stream_gives_the_same_text_as_a_whole_answer(client: Any) -> None:
    fields: dict[str, Any] = {"model": "toy/model", "messages": HI, "seed": 5, "max_tokens": 40}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert (
        chunks[0].choices[0].delta.role == "assistant" and len(chunks) >= 4
    )  # the toy is quick: up to 32 tokens a piece
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def test_characters_of_several_tokens_come_whole(client: Any) -> None:
    stream = client.completions.create(model="toy/model", prompt="x", seed=3, max_tokens=300, stream=True)
    text = "".join(c.choices[0].text for c in stream)
    assert "é" in text and "\ufffd" not in text.rstrip("\ufffd")


def test_a_seed_repeats_the_answer_and_choices_differ(client: Any) -> None:
    def texts(seed: int | None) -> list[str]:
        answer = client.chat.completions.create(
            model="toy/model", messages=HI, seed=seed, n=3, max_tokens=16, temperature=1.2
        )
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return [c.message.content for c in answer.choices]

    assert texts(11) == texts(11) != texts(12)
    assert len(set(texts(11))) == 3
    assert texts(None) != texts(None)


def test_streamed_choices_are_told_apart(client: Any) -> None:
    fields: dict[str, Any] = {"model": "toy/model", "messages": HI, "seed": 4, "n": 3, "max_tokens": 20}
    whole = client.chat.completions.create(**fields)
    texts, ends = ["", "", ""], list[int]()
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert texts == [c.message.content for c in whole.choices] and sorted(ends) == [0, 1, 2]


def test_a_stop_string_ends_the_text_before_it(client: Any, greedy: Callable[..., str]) -> None:
    text = greedy(RENDERED, 30)
    stop = text[10:13]
    for stream in (False, True):
        answer = client.chat.completions.create(
            model="toy/model", messages=HI, temperature=0, stop=["§", stop], max_tokens=30, stream=stream
        )
        if stream:
            chunks = list(answer)
            content = "".join(c.choices[0].delta.content or "" for c in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            content, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (content, reason) == (text[: text.index(stop)], "stop")


def test_logprobs_are_those_of_the_model(client: Any, greedy: Callable[..., str]) -> None:
    answer = client.chat.completions.create(
        model="toy/model", messages=HI, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert bytes(b for token in content for b in token.bytes).decode(errors="replace") == greedy(RENDERED, 8)
    for token in content:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].bytes == token.bytes
        assert token.logprob == token.top_logprobs[0].logprob > token.top_logprobs[1].logprob
        assert 0 < sum(math.exp(top.logprob) for top in token.top_logprobs) < 1
    streamed = client.chat.completions.create(
        model="toy/model", messages=HI, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3, stream=True
    )
    parts = [c.choices[0].logprobs.content for c in streamed if c.choices[0].logprobs]
    assert [t.token for part in parts for t in part] == [t.token for t in content]


def test_completions_take_texts_and_token_ids_and_several_at_once(client: Any, greedy: Callable[..., str]) -> None:
    def ask(prompt: Any, **more: Any) -> Any:
        return client.completions.create(model="toy/model", prompt=prompt, temperature=0, max_tokens=6, **more)

    assert ask("abc").choices[0].text == ask([97, 98, 99]).choices[0].text == greedy("abc", 6)
    several = ask(["abc", "xyz"], n=2)
    assert [c.text for c in several.choices] == [greedy("abc", 6)] * 2 + [greedy("xyz", 6)] * 2
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (6, 24)
    assert ask([[97], [98, 99]], echo=True).choices[1].text == "bc" + greedy("bc", 6)
    logprobs = ask("abc", logprobs=2).choices[0].logprobs
    assert "".join(logprobs.tokens) == greedy("abc", 6) and logprobs.text_offset == list(range(6))
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    assert len(ask("abc").choices[0].text) == 6 and ask("abc").object == "text_completion"
    default = client.completions.create(model="toy/model", prompt="abc", temperature=0)
    assert default.usage.completion_tokens == 16


def test_options_reach_the_template_and_biases_the_sampler(client: Any, greedy: Callable[..., str]) -> None:
    thinking = client.chat.completions.create(
        model="toy/model",
        messages=HI,
        temperature=0,
        max_tokens=5,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    )
    assert thinking.choices[0].message.content == greedy(RENDERED + "think ", 5)
    biased = client.chat.completions.create(
        model="toy/model", messages=HI, temperature=0, max_tokens=5, logit_bias={str(ord("q")): 100}
    )
    assert biased.choices[0].message.content == "qqqqq"


def test_a_repeated_prompt_is_taken_from_the_cache(client: Any) -> None:
    messages = [{"role": "user", "content": "a prompt that no other test sends, over some pages"}]
    usages = [
        client.chat.completions.create(model="toy/model", messages=messages, max_tokens=2).usage for _ in range(2)
    ]
    assert [usage.prompt_tokens_details.cached_tokens > 0 for usage in usages] == [False, True]


def test_the_model_is_listed(client: Any) -> None:
    assert [(m.id, m.object, m.owned_by, m.created) for m in client.models.list()] == [
        ("toy/model", "model", "mlc", 1_700_000_000)
    ]
    assert client.models.retrieve("toy/model").context_length == 1024
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-4")
    assert missing.value.code == "model_not_found"


def test_health_and_metrics_tell_what_happened(server: Server, client: Any) -> None:
    health = httpx.get(f"{server.url}/health")
    assert health.status_code == 200 and health.json()["status"] == "ok" and health.json()["model"] == "toy/model"
    assert httpx.head(f"{server.url}/health").status_code == 200
    names = ("mlc_generation_tokens_total", "mlc_time_to_first_token_seconds_count", "mlc_requests_accepted_total")
    before = [server.metric(name) for name in names]
    between = server.metric("mlc_inter_token_latency_seconds_count")
    client.completions.create(model="toy/model", prompt="abc", max_tokens=9, extra_body={"ignore_eos": True})
    assert until(lambda: server.metric(names[0]) == before[0] + 9)
    assert [server.metric(name) for name in names[1:]] == [before[1] + 1, before[2] + 1]
    assert server.metric("mlc_inter_token_latency_seconds_count") == between + 8
    assert server.metric("mlc_engine_up") == 1 and server.metric("mlc_kv_pages") == 512


def test_fifty_streams_at_once_say_what_each_says_alone(server: Server, greedy: Callable[..., str]) -> None:
    prompts = [f"prompt {i} " + "x" * i for i in range(50)]

    def ask(prompt: str) -> str:
        with server.client() as client:
            stream = client.completions.create(
                model="toy/model", prompt=prompt, temperature=0, max_tokens=48, stream=True
            )
            return "".join(chunk.choices[0].text for chunk in stream)

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, prompts)) == [greedy(prompt, 48) for prompt in prompts]
    assert until(lambda: server.metric("mlc_kv_pages_used") == 0 and server.metric("mlc_requests_active") == 0)


def _request(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


LONG = {"prompt": "x", "max_tokens": 900, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(start_server: StartServer, stream: bool) -> None:
    with start_server(delay=0.01) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(_request(LONG | {"stream": stream, "n": 2}))
            if stream:
                connection.recv(100)
            assert until(lambda: server.metric("mlc_kv_pages_used") > 0)
        assert until(lambda: server.metric("mlc_kv_pages_used") == 0, 2.0), "it would take 9 seconds to finish"
        assert server.metric("mlc_choices_finished_total") == 2
        assert server.metric("mlc_disconnects_total") == 1 and server.metric("mlc_requests_active") == 0
        log = server.log.read_text()
    assert "Traceback" not in log, log


def test_many_clients_that_leave_at_any_moment_leave_nothing_behind(start_server: StartServer) -> None:
    with start_server(delay=0.002, pages=64, serve={"engine": {"max_sequences": 4}}) as server:
        for i in range(40):
            connection = socket.create_connection(("127.0.0.1", server.port))
            request = _request(LONG | {"stream": i % 2 == 0, "prompt": "x" * (1 + 7 * i)})
            connection.sendall(request if i % 5 else request[:-9])  # some leave before their body is complete
            time.sleep(0.003 * (i % 7))
            connection.close()
        assert until(lambda: server.metric("mlc_kv_pages_used") == 0 and server.metric("mlc_requests_active") == 0)
        assert server.metric("mlc_choices_waiting") == 0
        assert server.client().completions.create(model="default", prompt="a", max_tokens=3).choices[0].text
        log = server.log.read_text()
    assert "Traceback" not in log, log


def test_a_reader_that_does_not_read_delays_nobody_and_is_cut_off(start_server: StartServer) -> None:
    with start_server(serve={"write_seconds": 0.5}) as server:
        with socket.socket() as sleeper:
            sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sleeper.connect(("127.0.0.1", server.port))
            long: dict[str, Any] = {"messages": HI, "max_tokens": 900, "ignore_eos": True, "n": 16, "stream": True}
            sleeper.sendall(_request(long | {"logprobs": True, "top_logprobs": 20}, "/v1/chat/completions"))
            started = time.monotonic()
            server.client().completions.create(model="default", prompt="a", max_tokens=20)
            assert time.monotonic() - started < 5
            assert until(lambda: server.metric("mlc_disconnects_total") == 1, 20)
        assert server.metric("mlc_requests_active") == 0
        assert until(lambda: server.metric("mlc_kv_pages_used") == 0)


def test_a_stream_without_news_is_kept_alive_by_comments(start_server: StartServer, greedy: Callable[..., str]) -> None:
    with start_server(delay=0.2, serve={"ping_seconds": 0.04}) as server:
        answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": True})
        assert answer.text.count(": ping\n\n") >= 3 and answer.text.endswith("data: [DONE]\n\n")
        fields: dict[str, Any] = {"model": "default", "prompt": "a", "temperature": 0, "max_tokens": 3}
        stream = server.client().completions.create(**fields, stream=True)
        assert "".join(c.choices[0].text for c in stream) == greedy("a", 3)


def test_a_key_guards_everything_but_health(start_server: StartServer) -> None:
    with start_server(serve={"api_key": "sesame"}) as server:
        assert 'Bearer $API_KEY"' in server.banner and "sesame" not in server.banner
        assert httpx.get(f"{server.url}/health").status_code == 200
        for path in ("/metrics", "/v1/models", "/v1/models/toy/model", "/nowhere"):
            assert httpx.get(server.url + path).status_code == 401, path
        for key in ("x", "Sesame", "sesame2", "ö"):
            header = {b"authorization": f"Bearer {key}".encode("latin-1")}
            answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}, headers=header)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()
        assert server.client("sesame").completions.create(model="default", prompt="a", max_tokens=1).choices
        assert httpx.get(f"{server.url}/metrics", headers={"x-api-key": "sesame"}).status_code == 200


def test_running_requests_may_end_when_the_server_is_told_to_stop(start_server: StartServer) -> None:
    with start_server(delay=0.02, serve={"drain_seconds": 10.0}) as server, ThreadPoolExecutor() as pool:
        engine = server.engine_pid()
        client: Any = server.client()
        answer = pool.submit(lambda: client.completions.create(model="default", prompt="a", seed=1, max_tokens=30))
        assert until(lambda: server.metric("mlc_requests_active") == 1)
        server.process.terminate()
        assert until(lambda: httpx.get(f"{server.url}/health").json()["status"] == "draining")
        refused = server.post("/v1/completions", {"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        assert answer.result().usage.completion_tokens == 30
        assert server.process.wait(5) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


def test_requests_that_outlast_the_draining_are_told_so(start_server: StartServer) -> None:
    with start_server(delay=0.02, serve={"drain_seconds": 0.3}) as server:
        with server.client() as client:
            stream = client.completions.create(model="default", prompt="a", max_tokens=900, stream=True)
            next(iter(stream))
            server.process.terminate()
            with pytest.raises(openai.APIError, match="stops"):
                list(stream)
        assert server.process.wait(5) == 0
        log = server.log.read_text()
    assert "Traceback" not in log, log


def test_a_server_that_is_still_opening_its_model_stops_at_once() -> None:
    options = json.dumps({"opening": 60.0, "serve": {"port": 0}})
    with subprocess.Popen([sys.executable, str(HERE / "toy_server.py"), options], stdout=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert until(lambda: len(children.read_text().split()) == 2), "the resource tracker and the engine"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0


def test_a_port_that_is_taken_is_named(server: Server) -> None:
    options = json.dumps({"serve": {"port": server.port}})
    run = subprocess.run(
        [sys.executable, str(HERE / "toy_server.py"), options], capture_output=True, text=True, timeout=20
    )
    assert run.returncode == 1 and f"port {server.port}" in run.stderr and "--port" in run.stderr
