"""Sampling from a server with OpenAI's completions API, such as vLLM's: many requests at a time, retried if they fail.

Token ids are sent, not text: the server's own chat template and treatment of special tokens play no part, and an answer
is stored under exactly what was asked. All sampling parameters are sent, since a server takes those left out from
the model's `generation_config.json`.
"""

import asyncio
import os
import random
from collections.abc import Container, Iterator, Sequence
from typing import Any

import aiohttp

from data_pipeline.config import ServerConfig, SourceConfig
from data_pipeline.sampling.sampler import Answer, Answered, Request
from fusejax.common.cli import UserError, one_line

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
REFUSALS = (400, 413, 422)
"""HTTP statuses that mean a fault of this one request; other client errors mean a fault of the configuration."""


class Unavailable(Exception):
    """A temporary failure; `wait` is the delay in seconds that the server asked for."""

    def __init__(self, problem: str, wait: float = 0.0):
        super().__init__(problem)
        self.wait = wait


class OpenaiSampler:
    """One model behind a server, and one source's sampling parameters."""

    def __init__(self, source: SourceConfig, context: int):
        """Finds the server and its model.

        Raises:
          UserError: it cannot be reached, does not serve the model, or serves it with a shorter context.
        """
        assert source.server is not None
        self._source, self._server = source, source.server
        self._name = source.server.served_as or source.model
        self._url = source.server.url.rstrip("/")
        self._where = f"sources: {source.name}: {self._url}"
        self._headers = _headers(source.server)
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(self._open(context))
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Iterator[Answered]:
        """The missing answers, as they come; see `sampler.Sampler`.

        Raises:
          UserError: the server was away for longer than the source's patience, or refuses access.
        """
        missing = iter([request for request in requests if request.key not in done])
        ready: asyncio.Queue[tuple[Request, Answer] | None] = asyncio.Queue()
        whole = self._loop.create_task(self._ask_all(missing, ready))
        try:
            open_ = True
            while open_:
                batch = [self._loop.run_until_complete(ready.get())]
                while not ready.empty():
                    batch.append(ready.get_nowait())
                open_ = None not in batch
                if answered := [pair for pair in batch if pair is not None]:
                    yield answered
            self._loop.run_until_complete(whole)
        finally:
            whole.cancel()
            self._loop.run_until_complete(asyncio.gather(whole, return_exceptions=True))

    def close(self) -> None:
        """Closes the event loop; nothing else stays open between calls."""
        self._loop.close()

    async def _open(self, context: int) -> None:
        async with self._session() as session:
            listed = await self._patiently(session, "GET", f"{self._url}/models")
            try:
                models = {model["id"]: model.get("max_model_len") for model in listed["data"]}
            except (KeyError, TypeError):
                raise UserError(f"{self._where}: /models does not list models; is this the URL up to /v1?") from None
            if self._name not in models:
                raise UserError(f"{self._where} serves {', '.join(models) or 'nothing'}, not {self._name}")
            served = models[self._name]
            if served is not None and served < context:
                raise UserError(
                    f"{self._where}: the server's context has {served} tokens, fewer than the {context} that requests "
                    f"keep to; set max_model_len: {served} for this source"
                )
            self.engine = await self._version(session)

    async def _version(self, session: aiohttp.ClientSession) -> str:
        """The server's version, which only vLLM reports, at a path beside `/v1`."""
        try:
            found = await self._patiently(session, "GET", f"{self._url.removesuffix('/v1')}/version")
            return f"vllm {found['version']} server"
        except (UserError, KeyError, TypeError):
            return "server of unknown version"

    async def _ask_all(self, missing: Iterator[Request], ready: asyncio.Queue[Any]) -> None:
        """Puts answers into the queue, and a final None even after an error."""

        async def work() -> None:
            for request in missing:  # All workers share one iterator: each takes what is next.
                await ready.put((request, await self._ask(session, request)))

        try:
            async with self._session() as session, asyncio.TaskGroup() as group:
                for _ in range(self._server.concurrency):
                    group.create_task(work())
        except* UserError as errors:
            raise errors.exceptions[0] from None
        finally:
            ready.put_nowait(None)

    async def _ask(self, session: aiohttp.ClientSession, request: Request) -> Answer:
        body = {
            "model": self._name,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": self._source.temperature,
            "top_p": self._source.top_p,
            "repetition_penalty": self._source.repetition_penalty,
            "top_k": 0,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "n": 1,
            "seed": request.seed,
        }
        found = await self._patiently(session, "POST", f"{self._url}/completions", body, parse=_completion)
        if isinstance(found, str):
            return Answer("", "error", 0, f"refused: {found}")
        answer, asked = found
        if asked != len(request.prompt):
            raise UserError(
                f"{self._where}: the server read {asked} prompt tokens where {len(request.prompt)} were sent"
            )
        return answer

    async def _patiently(
        self, session: aiohttp.ClientSession, method: str, url: str, body: Any = None, parse: Any = lambda found: found
    ) -> Any:
        """The parsed response, or the text of a refusal; temporary failures are retried with growing delays.

        Raises:
          UserError: the failure outlasted the source's patience, or is not temporary.
        """
        # Only the time between attempts counts: a request that is lost after an hour is no reason to give up.
        waited, attempt = 0.0, 0
        while True:
            try:
                return await self._try(session, method, url, body, parse)
            except (Unavailable, aiohttp.ClientError, OSError, TimeoutError) as error:
                # Random, so that requests that failed together are not retried together.
                backoff = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)
                wait, attempt = getattr(error, "wait", 0.0) + backoff, attempt + 1
                waited += wait
                if waited > self._server.patience_seconds:
                    raise UserError(
                        f"{self._where}: no answer after {attempt} attempts, {self._server.patience_seconds:g} seconds "
                        f"of patience: {one_line(error)}; the answers so far are kept"
                    ) from None
                await asyncio.sleep(wait)

    async def _try(self, session: aiohttp.ClientSession, method: str, url: str, body: Any, parse: Any) -> Any:
        async with session.request(method, url, json=body, headers=self._headers) as response:
            status = response.status
            if status in (408, 409, 425, 429) or status >= 500:
                asked = response.headers.get("Retry-After", "")
                wait = min(float(asked), self._server.patience_seconds) if asked.isdecimal() else 0.0
                raise Unavailable(f"status {status}: {_short(await response.text())}", wait)
            if status in REFUSALS and body is not None:
                return f"status {status}: {_short(await response.text())}"
            if status != 200:
                raise UserError(f"{self._where}: status {status}: {_short(await response.text())}")
            try:
                return parse(await response.json())
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise Unavailable(f"a broken response: {one_line(error)}") from None

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=self._server.timeout_seconds)
        return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


def _completion(found: Any) -> tuple[Answer, int]:
    """The answer, and how many prompt tokens the server read."""
    (choice,), usage = found["choices"], found["usage"]
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"finished by {choice['finish_reason']!r}")  # By an engine that is shutting down.
    return Answer(choice["text"], choice["finish_reason"], usage["completion_tokens"]), usage["prompt_tokens"]


def _headers(server: ServerConfig) -> dict[str, str]:
    if server.api_key_variable is None:
        return {}
    key = os.environ.get(server.api_key_variable)
    if not key:
        raise UserError(f"api_key_variable: the environment variable {server.api_key_variable} is not set")
    return {"Authorization": f"Bearer {key}"}


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else flat[:300] + " ..."
