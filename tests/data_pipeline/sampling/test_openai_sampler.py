"""The client of OpenAI-compatible servers, against a small one on loopback that fails in every way that servers do."""

import asyncio
import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from data_pipeline.config import ServerConfig, SourceConfig
from data_pipeline.sampling.backends import openai_connection
from data_pipeline.sampling.backends.openai_sampler import OpenaiSampler
from data_pipeline.sampling.sampler import Answer, Request, Sampling
from fusejax.common.cli import UserError


class Server:
    """Answers with the seed. `faults` are what the first attempts of each request meet instead, in order."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.refuse: set[int] = set()
        self.attempts: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.under_way = self.most = 0
        self.extra_tokens = 0

    async def models(self, request: web.Request) -> web.StreamResponse:
        self.keys.add(request.headers.get("Authorization"))
        return web.json_response({"data": [{"id": "m", "max_model_len": 100}]})

    async def version(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "9.9"})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._complete(request, await request.json())
        finally:
            self.under_way -= 1

    async def _complete(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        seed = body["seed"]
        await asyncio.sleep(0.005)
        attempt = self.attempts[seed]
        self.attempts[seed] += 1
        fault = self.faults[attempt] if attempt < len(self.faults) else None
        if seed in self.refuse:
            return web.json_response({"error": {"message": "token id out of range"}}, status=400)
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "half":
            response = web.StreamResponse(headers={"Content-Length": "500", "Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"text": "ha')
            assert request.transport is not None
            request.transport.close()
            return response
        if fault == "nonsense":
            return web.json_response({"choices": []})
        if fault == "abort":
            return web.json_response(completion(body, "half of it", "abort"))
        if fault == "silence":
            await asyncio.sleep(60)
        if fault is not None:
            return web.Response(status=int(fault), text="later", headers={"Retry-After": "0"})
        self.answered[seed] += 1
        self.bodies.append(body)
        found = completion(body, f"answer {seed}", "length" if seed % 2 else "stop")
        found["usage"]["prompt_tokens"] += self.extra_tokens
        return web.json_response(found)


def completion(body: dict[str, Any], text: str, reason: str) -> dict[str, Any]:
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 3}
    return {"choices": [{"text": text, "finish_reason": reason}], "usage": usage}


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    """The server and its URL."""
    state, loop = Server(), asyncio.new_event_loop()
    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/models", state.models),
            web.get("/version", state.version),
            web.post("/v1/completions", state.completions),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield state, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_connection, "FIRST_WAIT", 0.01)


def sampler(url: str, context: int = 100, **server: Any) -> OpenaiSampler:
    settings = ServerConfig(url=url, **({"served_as": "m", "concurrency": 8} | server))
    return OpenaiSampler(SourceConfig(name="s", model="org/m", server=settings), context)


def requests(count: int) -> list[Request]:
    return [Request(f"k{n}", (1, 2, n), n, 10, Sampling(0.5, 0.95)) for n in range(count)]


def collect(client: OpenaiSampler, wanted: list[Request], done: Any = ()) -> dict[str, Answer]:
    try:
        pairs = [pair for batch in client.generate(wanted, done) for pair in batch]
    finally:
        client.close()
    found = {request.key: answer for request, answer in pairs}
    assert len(found) == len(pairs)
    return found


def expected(wanted: list[Request]) -> dict[str, Answer]:
    return {r.key: Answer(f"answer {r.seed}", "length" if r.seed % 2 else "stop", 3) for r in wanted}


def test_answers_come_with_all_parameters_sent(server: tuple[Server, str]):
    state, url = server
    client, wanted = sampler(url), requests(50)
    assert client.engine == "vllm 9.9 server"
    assert collect(client, wanted, done={"k1", "k2"}) == expected([wanted[0], *wanted[3:]])
    assert state.most == 8  # Bounded, and used.
    body = next(body for body in state.bodies if body["seed"] == 7)
    assert body == {
        "model": "m", "prompt": [1, 2, 7], "max_tokens": 10, "temperature": 0.5, "top_p": 0.95, "top_k": -1,
        "min_p": 0.0, "repetition_penalty": 1.0, "seed": 7,
    }  # fmt: skip


def test_penalties_and_stop_texts_are_sent_where_they_are_set(server: tuple[Server, str]):
    state, url = server
    penalised = Sampling(0, presence_penalty=0.5, frequency_penalty=-1.5, stop=("\n\n", "END"))
    collect(sampler(url), [dataclasses.replace(request, sampling=penalised) for request in requests(1)])
    (body,) = state.bodies
    told = {name: body.get(name) for name in ("presence_penalty", "frequency_penalty", "stop", "temperature", "top_p")}
    assert told == {
        "presence_penalty": 0.5, "frequency_penalty": -1.5, "stop": ["\n\n", "END"], "temperature": 0, "top_p": 1.0
    }  # fmt: skip


def test_what_passes_is_tried_again(server: tuple[Server, str]):
    state, url = server
    state.faults = ["429", "503", "reset", "half", "500", "nonsense", "abort"]
    wanted = requests(30)
    assert collect(sampler(url), wanted) == expected(wanted)
    assert set(state.attempts.values()) == {8} and set(state.answered.values()) == {1}


def test_a_silent_server_is_asked_again(server: tuple[Server, str]):
    state, url = server
    state.faults = ["silence"]
    wanted = requests(3)
    assert collect(sampler(url, timeout_seconds=0.2), wanted) == expected(wanted)


def test_patience_ends(server: tuple[Server, str]):
    state, url = server
    state.faults = ["503"] * 1000
    with pytest.raises(UserError, match=r"sources: s: .* attempts, 0\.2 seconds of patience: status 503: later; the"):
        collect(sampler(url, patience_seconds=0.2), requests(20))


def test_nothing_listens():
    with pytest.raises(UserError, match=r"no answer after .* attempts"):
        sampler("http://127.0.0.1:9/v1", patience_seconds=0.1)


def test_a_refused_request_is_an_error_of_its_own(server: tuple[Server, str]):
    state, url = server
    state.refuse = {4}
    wanted = requests(9)
    found = collect(sampler(url), wanted)
    refused = found.pop("k4")
    assert refused.finish_reason == "error" and refused.error is not None
    assert refused.error.startswith("refused: status 400: ") and "token id out of range" in refused.error
    assert found == expected([r for r in wanted if r.seed != 4])
    assert state.attempts[4] == 1


def test_mistakes_of_the_configuration(server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch):
    state, url = server
    with pytest.raises(UserError, match="serves m, not other"):
        sampler(url, served_as="other")
    with pytest.raises(UserError, match=r"context has 100 tokens, fewer than the 101 .*; set max_model_len: 100"):
        sampler(url, context=101)
    with pytest.raises(UserError, match="status 404"):
        sampler(url + "/v1")
    with pytest.raises(UserError, match="the environment variable SERVER_KEY is not set"):
        sampler(url, api_key_variable="SERVER_KEY")
    monkeypatch.setenv("SERVER_KEY", "open sesame")
    sampler(url, api_key_variable="SERVER_KEY").close()
    assert "Bearer open sesame" in state.keys
    state.extra_tokens = 1
    with pytest.raises(UserError, match="read 4 prompt tokens where 3 were sent"):
        collect(sampler(url), requests(3))
    state.faults = ["401"] * 10
    with pytest.raises(UserError, match="status 401: later"):
        collect(sampler(url), requests(3))


def test_leaving_early_leaves_nothing_running(server: tuple[Server, str]):
    state, url = server
    state.faults = ["503"]
    client = sampler(url)
    batches = client.generate(requests(500), ())
    first = next(batches)
    batches.close()
    client.close()
    assert first and sum(state.answered.values()) < 500
