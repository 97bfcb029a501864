"""Sampling from a server with OpenAI's API, by OpenAI's client: many requests at a time, retried if they fail.

Two modes. With `completions`, token ids are sent, not text: the server's own chat template and treatment of special
tokens play no part, and an answer is stored under exactly what was asked. Servers that take token ids (vLLM, SGLang)
take parameters that a request leaves out from the model's `generation_config.json`; so those that it could hold are
sent, with the value that does nothing where the source sets none. With `chat`, messages are sent, and only the
parameters that are set: many hosts refuse those that they do not know.
"""

import asyncio
import dataclasses
import re
from collections.abc import Container, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import openai

from data_pipeline.config import LATER, LEAVABLE, SourceConfig
from data_pipeline.sampling.backends import openai_answers
from data_pipeline.sampling.backends.openai_answers import Malformed
from data_pipeline.sampling.backends.openai_connection import Connection, Refusal
from data_pipeline.sampling.sampler import Answer, Batches, Request
from fusejax.common.cli import UserError, note

_OPTIONAL = LATER
"""Parameters that need not be set."""
_PLAIN = ("model", "prompt", "messages", "max_tokens", "max_completion_tokens")
"""What a refused request may name without that being a parameter which the server does not take."""


class OpenaiSampler:
    """One model behind a server."""

    def __init__(self, source: SourceConfig, context: int):
        """Finds the server, and its model if it lists models.

        Args:
          source: whose model is asked.
          context: most tokens that a request's prompt and answer have together; of no use to a chat server.

        Raises:
          UserError: it cannot be reached, does not serve the model, or serves it with a shorter context.
        """
        assert source.server is not None
        self._source, self._server = source, source.server
        self._name = source.server.served_as or source.model
        self._names = {self._name, source.server.answers_as or self._name}
        self._chat = source.server.mode == "chat"
        self._connection = Connection(source.server, f"sources: {source.name}")
        self._where = self._connection.where
        self._limit, self._answered = "max_tokens", False
        self._loop = asyncio.new_event_loop()
        try:
            if self._chat:
                self.engine = f"chat server {urlsplit(self._connection.url).hostname}"
            else:
                self._loop.run_until_complete(self._open(context))
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Batches:
        """The missing answers, as they come; see `sampler.Sampler`.

        Raises:
          UserError: the server was away for longer than the source's patience, refuses access or a parameter, or
            another model answers.
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
            self._end(whole)

    def close(self) -> None:
        """Ends what is under way, and the event loop; nothing else stays open between calls."""
        if not self._loop.is_closed():
            self._end(*asyncio.all_tasks(self._loop))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _end(self, *tasks: asyncio.Task[Any]) -> None:
        if tasks and not self._loop.is_closed():
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _open(self, context: int) -> None:
        async with self._connection.client() as client:
            try:
                models = await self._connection.patiently(client, "GET", "/models", None, openai_answers.models)
            except Malformed as error:
                raise UserError(f"{self._where}: {error}") from None
            served, root = models.get(self._name, (None, None))
            if self._name not in models:
                names = self._connection.told(", ".join(models)) or "nothing"
                raise UserError(f"{self._where} serves {names}, not {self._name}")
            if served is not None and served < context:
                raise UserError(
                    f"{self._where}: the server's context has {served} tokens, fewer than the {context} that requests "
                    f"keep to; set max_model_len: {served} for this source"
                )
            # Of several names for one model, a server may answer by the first.
            self._names |= {name for name, (_, other) in models.items() if root is not None and other == root}
            self.engine = await self._version(client)

    async def _version(self, client: openai.AsyncOpenAI) -> str:
        """The server's version, which only vLLM reports, at a path beside `/v1`."""
        try:
            found = await self._connection.patiently(
                client, "GET", f"{self._connection.url.removesuffix('/v1')}/version", None, _version
            )
        except (UserError, Malformed):
            return "server of unknown version"
        return f"vllm {found} server"

    async def _ask_all(self, missing: Iterator[Request], ready: asyncio.Queue[Any]) -> None:
        """Puts answers into the queue, and a final None even after an error."""

        async def work() -> None:
            for request in missing:  # All workers share one iterator: each takes what is next.
                await ready.put((request, await self._ask(client, request)))

        try:
            async with self._connection.client() as client:
                workers = [asyncio.create_task(work()) for _ in range(self._server.concurrency)]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        finally:
            ready.put_nowait(None)

    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> Answer:
        path = "/chat/completions" if self._chat else "/completions"
        while True:
            limit = self._limit
            try:
                body = self._body(request, limit)
                answer = await self._connection.patiently(
                    client, "POST", path, body, lambda found: self._read(found, request)
                )
            except Malformed as error:
                return Answer("", "error", 0, f"malformed_answer: {error}", believed=False)
            except Refusal as error:
                if self._other_limit(limit, str(error)):
                    continue
                self._require_parameters(body, request, str(error))
                return Answer("", "error", 0, f"refused: {error}")
            self._answered = True
            return answer

    def _body(self, request: Request, limit: str) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._name,
            limit: request.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        body |= {"presence_penalty": sampling.presence_penalty or None, "stop": list(sampling.stop) or None}
        body |= {"frequency_penalty": sampling.frequency_penalty or None}
        if self._chat:
            # Not all take more bits.
            body |= {"messages": list(request.messages), "seed": request.seed % 2**31}
            found = {"top_k": sampling.top_k, "min_p": sampling.min_p}
            found["repetition_penalty"] = sampling.repetition_penalty if sampling.repetition_penalty != 1 else None
            found["chat_template_kwargs"] = self._source.chat_template_kwargs or None  # type: ignore[assignment]
            body |= {name: value for name, value in found.items() if value is not None}
        else:
            # No limit is -1 in vLLM and SGLang; SGLang refuses 0.
            body |= {"prompt": list(request.prompt), "seed": request.seed, "top_k": sampling.top_k or -1}
            body |= {"min_p": sampling.min_p or 0.0, "repetition_penalty": sampling.repetition_penalty}
        extra = dict(self._server.extra_body)
        if "max_tokens" in extra:
            extra[limit] = extra.pop("max_tokens")
        return {name: value for name, value in (body | extra).items() if value is not None}

    def _read(self, found: Any, request: Request) -> Answer:
        """The answer in a response.

        Raises:
          Malformed: there is none.
          UserError: it is of another model, or to another prompt.
        """
        answer = openai_answers.chat(found) if self._chat else openai_answers.completion(found, request.max_tokens)
        said = f"{answer.text}{answer.reasoning or ''}"
        if any(len(secret) >= 8 and secret in said for secret in self._connection.secrets):
            raise Malformed("it repeats the server's key or password")
        name = openai_answers.model(found)
        same = name is None or name in self._names
        if not same and not (self._chat and any(openai_answers.same_model(each, str(name)) for each in self._names)):
            other = self._connection.told(str(name), limit=80)
            remedy = "; if that is its name there, set answers_as for this source's server" if self._chat else ""
            raise UserError(f"{self._where}: {self._name} was asked, and {other} answered{remedy}")
        if self._chat:
            return answer
        if answer.prompt_tokens != len(request.prompt):
            sent = len(request.prompt)
            raise UserError(
                f"{self._where}: the server read {answer.prompt_tokens} prompt tokens where {sent} were sent"
            )
        return dataclasses.replace(answer, prompt_tokens=None)

    def _other_limit(self, limit: str, problem: str) -> bool:
        """Whether to ask again with OpenAI's later name of the limit, which its later models alone take."""
        later = "max_completion_tokens"
        if self._chat and self._limit == "max_tokens" and later in problem:
            self._limit = later
            note(f"sample {self._source.name}: the server takes {later} instead of max_tokens")
        return limit != self._limit

    def _require_parameters(self, body: dict[str, Any], request: Request, problem: str) -> None:
        """Raises `UserError` where a refusal, before any answer, names a parameter that all requests have."""
        named = [name for name in body if name not in _PLAIN and re.search(rf"\b{re.escape(name)}\b", problem)]
        if named and not self._answered:
            first, remedy = named[0], "leave it out"
            # What need not be set is sent, if at all, to no effect, unless it is set.
            ours = first not in self._server.extra_body and not (
                first in _OPTIONAL and getattr(request.sampling, first)
            )
            if first in LEAVABLE and ours:
                remedy = f"server.extra_body: {{{first}: null}} leaves it out"
            raise UserError(f"{self._where}: the server refuses {', '.join(named)}: {problem}; {remedy}")


def _version(found: Any) -> str:
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, str) or not re.fullmatch(r"[\w.+-]{1,64}", version, re.ASCII):
        raise Malformed("no version")
    return version
