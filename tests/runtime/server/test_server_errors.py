"""Bad input, broken clients and a broken engine: each gets OpenAI's error form, and the server stays up."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from tests.runtime.server.conftest import Server, StartServer, until

HI = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(autouse=True)
def _still_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test sends to the shared server, the next one is served."""
    yield
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        assert server.post(COMPLETIONS, {"prompt": "a", "max_tokens": 1}).status_code == 200


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of `answer`, which has OpenAI's form and the given status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HI, "temperature": -1}, "temperature"),
        ({"messages": HI, "max_tokens": -5}, "max_tokens"),
        ({"messages": HI, "max_tokens": 10**18}, "max_tokens"),
        ({"messages": HI, "n": 10**6}, "n"),
        ({"messages": HI, "n": "two"}, "n"),
        ({"messages": HI, "stop": {"a": 1}}, "stop"),
        ({"messages": HI, "logit_bias": {"257": 1}}, "logit_bias"),
        ({"messages": HI, "logit_bias": {"99999999999": 1}}, "logit_bias"),
        ({"messages": HI, "stop_token_ids": [257]}, "stop_token_ids"),
        ({"messages": HI, "model": 5}, "model"),
        ({"messages": HI, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": HI, "respons_format": None}, "respons_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a template may refuse"}]}, "messages"),
        ({}, "the body"),
    ],
)
def test_bad_fields_are_named(server: Server, body: dict[str, Any], param: str) -> None:
    error = refused(server.post(CHAT, body), 400)
    assert error["type"] == "invalid_request_error" and param in (error["param"], error["message"].partition(":")[0])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": ',
        b"[" * 100_000,
        b'{"messages":' * 10_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
        b'{"prompt": "a", "prompt": "b"}',
        b"\x00" * 1000,
    ],
)
def test_malformed_json_is_a_bad_request(server: Server, body: bytes) -> None:
    for path in (CHAT, COMPLETIONS):
        refused(server.post(path, body), 400)


def test_random_mutations_of_a_request_are_served_or_refused(server: Server) -> None:
    rng = random.Random(0)
    request = json.dumps({"prompt": "abc", "max_tokens": 2, "stop": ["x"], "logit_bias": {"97": 1}, "n": 1}).encode()
    with httpx.Client() as client:
        for _ in range(300):
            body = bytearray(request)
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(len(body))
                body[at : at + rng.randrange(3)] = rng.choice([b"", b"\x00", b'"', b"{", b"9", b"-", b"\xf0", b"null"])
            headers = {"content-type": "application/json"}
            answer = client.post(server.url + COMPLETIONS, content=bytes(body), headers=headers)
            assert answer.status_code == 200 or refused(answer, 400), body


@pytest.mark.parametrize(("path", "field"), [(CHAT, "messages"), (COMPLETIONS, "prompt")])
def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(server: Server, path: str, field: str) -> None:
    text = "x" * 2000
    error = refused(
        server.post(
            path, {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
        ),
        400,
    )
    assert error["code"] == "context_length_exceeded" and error["param"] == field
    assert "1024" in error["message"] and "20" in error["message"]


@pytest.mark.parametrize("prompt", ["", [257], [2**31], [2**70], [-1]])
def test_prompts_that_no_model_can_read_are_refused(server: Server, prompt: Any) -> None:
    assert refused(server.post(COMPLETIONS, {"prompt": prompt}), 400)["param"] == "prompt"


def test_an_unknown_model_is_not_found(server: Server) -> None:
    error = refused(server.post(CHAT, {"model": "gpt-4", "messages": HI}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model") and "toy/model" in error["message"]
    with pytest.raises(openai.NotFoundError):
        server.client().completions.create(model="gpt-4", prompt="a")


def test_the_client_raises_its_own_errors(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        server.client().chat.completions.create(model="default", messages=[], temperature=3)
    assert refusal.value.param == "messages" and refusal.value.type == "invalid_request_error"


def test_unknown_paths_methods_types_and_sizes_are_refused(server: Server) -> None:
    refused(server.post("/v1/embeddings", {}), 404)
    refused(httpx.get(server.url + "/v1/../../etc/passwd"), 404)
    refused(httpx.get(server.url + CHAT), 405)
    refused(httpx.delete(server.url + "/v1/models/toy/model"), 405)
    refused(httpx.request("BREW", server.url + CHAT), 405)
    refused(server.post(CHAT, {"messages": HI}, content_type="text/plain"), 415)
    refused(httpx.post(server.url + CHAT, content=b"{}"), 415)
    refused(server.post(CHAT, {"messages": HI}, content_encoding="gzip"), 415)
    assert "200000" in refused(server.post(COMPLETIONS, {"prompt": "x" * 300_000}), 413)["message"]

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 10_000

    headers = {"content-type": "application/json"}
    with suppress(httpx.WriteError, httpx.RemoteProtocolError):  # the line is cut while the client still writes
        refused(httpx.post(server.url + CHAT, content=endless(), headers=headers), 413)


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /h\xc3\xa9alth HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nNoColon\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_and_no_more(server: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(sent)
        answer = b""
        while not (b"\r\n\r\n" in answer and answer.endswith(b"}}")):
            data = connection.recv(10_000)
            assert data, answer
            answer += data
    status, body = int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])
    assert 400 <= status < 500 and body["error"]["message"]


def test_a_body_that_does_not_arrive_is_not_waited_for(start_server: StartServer) -> None:
    with start_server(serve={"body_seconds": 0.3}) as server:
        for sent in (b"Content-Length: 100\r\n\r\n{", b"X: "):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + sent)
                started = time.monotonic()
                assert b" 408 " in connection.recv(1000)
                assert time.monotonic() - started < 3


def test_more_than_the_limits_is_refused_for_now(start_server: StartServer) -> None:
    engine = {"max_queue": 3, "max_sequences": 1}
    with start_server(delay=0.02, serve={"max_requests": 2, "engine": engine}) as server, ThreadPoolExecutor() as pool:
        full = refused(server.post(COMPLETIONS, {"prompt": "a", "n": 4}), 429)
        assert (full["type"], full["code"]) == ("rate_limit_error", "overloaded") and "max-queue" in full["message"]
        slow = [pool.submit(server.post, COMPLETIONS, {"prompt": "a", "max_tokens": 25, "seed": 1}) for _ in range(2)]
        assert until(lambda: server.metric("mlc_requests_active") == 2)
        answer = server.post(COMPLETIONS, {"prompt": "a"})
        assert refused(answer, 429) and answer.headers["retry-after"]
        with pytest.raises(openai.RateLimitError):
            server.client().completions.create(model="default", prompt="a")
        assert [one.result().status_code for one in slow] == [200, 200]


def test_one_prompt_of_many_that_is_refused_takes_the_others_with_it(server: Server) -> None:
    refused(server.post(COMPLETIONS, {"prompt": ["a", "b" * 2000, "c"], "max_tokens": 900}), 400)
    assert until(lambda: server.metric("mlc_kv_pages_used") == 0, 2)


FAIL, HANG = "\x01", "\x03"  # see toy_server


def test_a_model_that_fails_fails_the_request_and_tells_no_secrets(start_server: StartServer) -> None:
    with start_server(delay=0.003) as server:
        error = refused(server.post(COMPLETIONS, {"prompt": FAIL, "max_tokens": 90, "ignore_eos": True}), 500)
        assert error["code"] == "generation_failed" and "secret" not in error["message"]
        with server.client() as client:
            fields: dict[str, Any] = {"model": "default", "prompt": FAIL, "max_tokens": 90, "stream": True}
            seen = 0
            with pytest.raises(openai.APIError, match="RuntimeError"):
                for chunk in client.completions.create(**fields, extra_body={"ignore_eos": True}):
                    seen += len(chunk.choices[0].text)
            assert seen > 30, "what came before the failure was sent"
            assert client.completions.create(model="default", prompt="a", max_tokens=3).choices[0].text
        assert server.metric("mlc_errors_total") == 2 and server.metric("mlc_kv_pages_used") == 0


def test_a_dead_engine_ends_all_requests_and_is_no_secret(start_server: StartServer) -> None:
    with start_server(delay=0.01) as server, ThreadPoolExecutor() as pool:
        long = {"prompt": "a", "max_tokens": 900, "ignore_eos": True}
        whole = pool.submit(server.post, COMPLETIONS, long)
        streamed = pool.submit(server.post, COMPLETIONS, long | {"stream": True})
        assert until(lambda: server.metric("mlc_choices_running") == 2)
        os.kill(server.engine_pid(), signal.SIGKILL)
        error = refused(whole.result(), 503)
        assert error["code"] == "engine_dead" and "signal 9" in error["message"] and "restart" in error["message"]
        events = streamed.result().text.strip().split("\n\n")
        assert len(events) > 1 and "signal 9" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]
        for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}):
            assert refused(server.post(COMPLETIONS, body), 503)["code"] == "engine_dead"
        health = httpx.get(f"{server.url}/health")
        assert health.status_code == 503 and health.json()["status"] == "dead" and "signal 9" in health.text
        assert server.metric("mlc_engine_up") == 0 and server.metric("mlc_requests_active") == 0
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 0


def test_a_stuck_engine_is_unhealthy_and_a_second_signal_stops_the_server(start_server: StartServer) -> None:
    with start_server(serve={"stuck_seconds": 1.0, "drain_seconds": 60.0}) as server, ThreadPoolExecutor() as pool:
        stuck = pool.submit(server.post, COMPLETIONS, {"prompt": HANG, "max_tokens": 100, "ignore_eos": True})
        assert until(lambda: httpx.get(f"{server.url}/health").json()["status"] == "stuck")
        assert httpx.get(f"{server.url}/health").status_code == 503
        engine = server.engine_pid()
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: refused(server.post(COMPLETIONS, {"prompt": "a"}), 503)["code"] == "shutting_down")
        server.process.send_signal(signal.SIGTERM)
        assert refused(stuck.result(), 503)["code"] == "engine_dead"
        assert server.process.wait(15) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


def test_a_model_without_a_template_cannot_chat(start_server: StartServer) -> None:
    with start_server(chat=False) as server:
        assert "/v1/completions" in refused(server.post(CHAT, {"messages": HI}), 400)["message"]
        assert "prompt" in server.banner
