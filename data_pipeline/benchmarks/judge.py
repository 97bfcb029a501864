"""Judges: models behind a server with OpenAI's API that grade answers, and what they said, kept for good.

Every question to a judge has a key: the hash of the judge's model, the messages, the parameters and how often it was
asked before. The reply is kept under it the moment it comes, so a killed run asks only for what is missing, and answers
that are graded again, in another run or for another table, cost nothing.
"""

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import openai
import polars as pl
from etils import epath
from pydantic import Field, PositiveInt

from data_pipeline.benchmarks.benchmark import Answer, Call, Grade, Judged, Reply
from data_pipeline.config import LEAVABLE, ServerConfig
from data_pipeline.sampling import reasoning, sampler
from data_pipeline.sampling.answer_store import AnswerStore
from data_pipeline.sampling.backends import openai_answers
from data_pipeline.sampling.backends.openai_answers import Malformed
from data_pipeline.sampling.backends.openai_connection import Connection, Refusal
from data_pipeline.stage_files import fingerprint
from fusejax.common.cli import UserError, note
from fusejax.common.progress import Progress

STORED = pl.Schema(
    {
        **dict.fromkeys(("key", "judge", "benchmark", "item", "call"), pl.String()),
        "attempt": pl.Int64(),
        **dict.fromkeys(("text", "finish_reason", "error", "top"), pl.String()),
        **dict.fromkeys(("prompt_tokens", "completion_tokens"), pl.Int64()),
        "seconds": pl.Float64(),
    }
)
"""A row per reply. `item`: one whose answer it was first asked about. `attempt`: from 0. `top`: JSON pairs of token and
log-probability at the first place."""
_PLAIN = ("model", "messages", "max_tokens", "max_completion_tokens")
"""What a refused request may name without that being a parameter which the server does not take."""
Row = dict[str, Any]
MALFORMED = "malformed_answer"
"""Begins the error of a reply that is not kept."""


class JudgeConfig(ServerConfig):
    """A judge: a chat model behind a server, local or hosted."""

    model: str = Field(min_length=1)
    """Its name, in tables and, unless `served_as` is set, on the server. Another model, even of the same family, judges
    otherwise; a program that stands in for one should say so in this name."""
    mode: Literal["chat"] = "chat"
    """Judges are sent messages."""
    concurrency: PositiveInt = 32


def judge(benchmark: Judged, answers: Sequence[Answer], config: JudgeConfig, folder: epath.Path) -> list[Grade]:
    """A grade per answer, in order.

    Args:
      folder: of all judgments, of whichever judges and benchmarks; need not exist.

    Raises:
      UserError: replies are missing, and the judge cannot be reached, takes no such requests, or is another model.
    """
    wanted = [benchmark.calls(answer) for answer in answers]
    with AnswerStore(folder, STORED) as store:
        kept = {row["key"]: row for row in store.table().iter_rows(named=True)}
        # Equal questions, about equal answers, are one.
        threads = {
            key(config, call, 0): _Thread(call, answer.item.id)
            for answer, calls in zip(answers, wanted, strict=True)
            for call in calls
        }
        missing = [thread for thread in threads.values() if thread.go_on(benchmark, config, kept)]
        if missing:
            title = f"{benchmark.name}: judged by {config.model}"
            with Progress(title, len(threads), "judgment", done=len(threads) - len(missing)) as progress:
                asyncio.run(_Judge(config).ask(benchmark, missing, store, kept, progress))
    asked = [thread for thread in threads.values() if thread.call.top_logprobs and thread.error is None]
    if without := sum(thread.replies[-1].top is None for thread in asked):
        note(f"{benchmark.name}: {without:,} of {len(asked):,} replies of {config.model} had no log-probabilities")
    return [
        _grade(benchmark, answer, {call.name: threads[key(config, call, 0)] for call in calls})
        for answer, calls in zip(answers, wanted, strict=True)
    ]


def key(config: JudgeConfig, call: Call, attempt: int) -> str:
    """Under which a reply is kept: the same on any machine, whichever answer it is about."""
    asked = [call.messages, call.max_tokens, call.temperature, call.top_logprobs, attempt]
    return fingerprint([config.model, config.extra_body, asked])


class _Thread:
    """A call, and those that followed it, with their replies."""

    def __init__(self, call: Call, item: str):
        self.call, self.item = call, item
        self.replies: list[Reply] = []
        self.error: str | None = None
        """Why the last reply is none."""

    def go_on(self, benchmark: Judged, config: JudgeConfig, kept: Mapping[str, Row]) -> Call | None:
        """What to ask next, after all replies that are kept; None if that is enough."""
        call: Call | None = self.call if not self.replies else self._next(benchmark)
        while call is not None and (row := kept.get(key(config, call, len(self.replies)))) is not None:
            self.add(call, row)
            call = self._next(benchmark)
        return call

    def add(self, call: Call, row: Row) -> None:
        top = None if row["top"] is None else tuple((token, logprob) for token, logprob in json.loads(row["top"]))
        self.call, self.error = call, row["error"]
        # A verdict that a judge thinks of is none.
        self.replies.append(Reply(reasoning.split(row["text"])[0], row["finish_reason"], top))

    def _next(self, benchmark: Judged) -> Call | None:
        # What a server refuses, it will refuse again.
        return None if self.error is not None else benchmark.again(self.call, self.replies)


def _grade(benchmark: Judged, answer: Answer, threads: Mapping[str, _Thread]) -> Grade:
    grade = benchmark.judged(answer, {name: thread.replies for name, thread in threads.items()})
    errors = [f"{name}: {thread.error}" for name, thread in threads.items() if thread.error is not None]
    if errors:  # Also where the answer's other calls were enough for a grade.
        return dataclasses.replace(grade, detail=f"unknown: the judge gave no answer: {'; '.join(errors)}")
    return grade


class _Judge:
    """A judge's server, for the time of one run."""

    def __init__(self, config: JudgeConfig):
        self._config = config
        self._name = config.served_as or config.model
        self._connection = Connection(config, f"judge {config.model}")
        self._limit, self._logprobs, self._answered = "max_tokens", True, False

    async def ask(
        self,
        benchmark: Judged,
        missing: Sequence[_Thread],
        store: AnswerStore,
        kept: dict[str, Row],
        progress: Progress,
    ) -> None:
        """Asks until every thread is at its end, and keeps every reply."""
        threads = iter(missing)

        async def work() -> None:
            for thread in threads:  # All workers share one iterator: each takes what is next.
                while (call := thread.go_on(benchmark, self._config, kept)) is not None:
                    name = key(self._config, call, len(thread.replies))
                    row, believed = await self._reply(client, call, name)
                    place = {"benchmark": benchmark.name, "item": thread.item, "attempt": len(thread.replies)}
                    row |= {"key": name, "call": call.name, **place}
                    if believed and row["key"] not in store.keys:
                        store.append([row])
                        kept[row["key"]] = row
                    thread.add(call, row)
                progress.add()

        async with self._connection.client() as client:
            workers = [asyncio.create_task(work()) for _ in range(min(self._config.concurrency, len(missing)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _reply(self, client: openai.AsyncOpenAI, call: Call, name: str) -> tuple[Row, bool]:
        """What the judge said, as a row; and whether to keep it: malformed replies are asked for again next time."""
        start = time.monotonic()
        row: Row = {"judge": self._config.model, "text": "", "finish_reason": "error", "error": None, "top": None}
        believed = True
        while True:
            body = self._body(call, name)
            try:
                answer, top = await self._connection.patiently(client, "POST", "/chat/completions", body, self._read)
            except Malformed as error:
                row["error"], believed = f"{MALFORMED}: {error}", False
            except Refusal as error:
                if self._otherwise(body, str(error)):
                    continue
                row["error"] = f"refused: {error}"
            else:
                self._answered = True
                row |= {"text": answer.text, "finish_reason": answer.finish_reason, "error": answer.error}
                row |= {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
                row["top"] = json.dumps(top) if top is not None and call.top_logprobs else None
            return row | {"seconds": round(time.monotonic() - start, 3)}, believed

    def _body(self, call: Call, name: str) -> Row:
        body = {
            "model": self._name,
            "messages": list(call.messages),
            self._limit: call.max_tokens,
            "temperature": call.temperature,
            # By the reply's key: what a killed run had asked for in vain is answered alike the next time.
            "seed": int(name[:15], 16) % 2**31,
        }
        if call.top_logprobs and self._logprobs:
            body |= {"logprobs": True, "top_logprobs": call.top_logprobs}
        extra = dict(self._config.extra_body)
        if "max_tokens" in extra:
            extra[self._limit] = extra.pop("max_tokens")
        return {name: value for name, value in (body | extra).items() if value is not None}

    def _read(self, found: Any) -> tuple[sampler.Answer, tuple[tuple[str, float], ...] | None]:
        answer, top = openai_answers.chat(found), openai_answers.top_logprobs(found)
        if any(len(secret) >= 8 and secret in answer.text for secret in self._connection.secrets):
            raise Malformed("it repeats the server's key or password")
        name = openai_answers.model(found)
        names = {self._name, self._config.answers_as or self._name}
        if name is not None and not any(name == each or openai_answers.same_model(each, name) for each in names):
            other = self._connection.told(name, limit=80)
            raise UserError(
                f"{self._connection.where}: {self._name} was asked, and {other} answered; if that is its name there, "
                "set answers_as"
            )
        return answer, top

    def _otherwise(self, body: Row, problem: str) -> bool:
        """Whether to ask again in another way: with OpenAI's later name of the limit, or without log-probabilities.

        Raises:
          UserError: before any reply, the server refuses a parameter that all requests have.
        """
        if "max_tokens" in body and "max_completion_tokens" in problem:
            self._limit = "max_completion_tokens"
            return True
        if "top_logprobs" in body and re.search("logprobs", problem):
            self._logprobs = False
            return True
        named = [name for name in body if name not in _PLAIN and re.search(rf"\b{re.escape(name)}\b", problem)]
        if named and not self._answered:
            remedy = f"extra_body: {{{named[0]}: null}} leaves it out" if named[0] in LEAVABLE else "leave it out"
            raise UserError(f"{self._connection.where}: the server refuses {named[0]}: {problem}; {remedy}")
        return False
