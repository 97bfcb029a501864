"""How a server is reached by OpenAI's client: its address, what lets requests in, and what its errors mean.

Passwords and keys go into headers and queries, and into nothing else: whatever a server sends back is masked and
shortened before it becomes part of a message.
"""

import asyncio
import base64
import email.utils
import logging
import os
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import httpx2
import openai

from data_pipeline.config import ServerConfig
from data_pipeline.sampling.backends import openai_answers
from data_pipeline.sampling.backends.openai_answers import Malformed
from fusejax.common import redact
from fusejax.common.cli import UserError, one_line

MOST_BYTES = 2**25
"""Of a response; more is no answer."""
RETRIED = (408, 409, 425, 429)
REFUSALS = (400, 413, 422)
"""HTTP statuses that mean a fault of this one request; other client errors mean a fault of the configuration."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds."""
MOST_MALFORMED = 5
"""Malformed answers to one request, after which it counts as failed."""
Found = TypeVar("Found")

# At this level it writes the URL of every request, with the keys in it.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class Unavailable(Exception):
    """A temporary failure; `wait` is the delay in seconds that the server asked for."""

    def __init__(self, problem: str, wait: float = 0.0):
        super().__init__(problem)
        self.wait = wait


class Refusal(Exception):
    """The server does not take this request; the text says why."""


class Connection:
    """Requests to one server.

    Attributes:
      url: up to `/v1`, without login and query.
      where: names the server in errors.
      secrets: what must not be told of it.
    """

    def __init__(self, server: ServerConfig, where: str):
        """Raises `UserError` where the key is not in the environment."""
        self._server = server
        self.url, self._query, login = _address(server.url)
        self.where = f"{where}: {redact.shown(server.url).rstrip('/')}"
        self._authorization, self.secrets = _authorization(server, login)
        self.secrets |= set(self._query.values())

    def told(self, text: str, limit: int = 300) -> str:
        """What the server said, fit to be shown and stored."""
        return redact.echoed(text, self.secrets, limit)

    async def send(self, client: openai.AsyncOpenAI, method: str, path: str, body: Any = None) -> bytes:
        """The body of a response with status 200.

        Raises:
          Unavailable: it may come, if the request is sent again.
          Refusal: the server does not take this request.
          UserError: the server takes no request of this kind, or lets nobody in.
        """
        # Left out by name, or the client would look for a key of OpenAI's.
        options: Any = {"headers": {"Authorization": self._authorization or openai.Omit()}}
        try:
            if method == "GET":
                response = await client.get(path, cast_to=httpx2.Response, options=options)
            else:
                response = await client.post(path, cast_to=httpx2.Response, body=body, options=options)
        except openai.APIStatusError as error:
            self._refuse(error.response, body)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Unavailable(self.told(str(cause) or type(cause).__name__)) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:  # While an error's body was read.
            raise Unavailable(self.told(str(error) or type(error).__name__)) from None
        return response.content

    async def patiently(
        self, client: openai.AsyncOpenAI, method: str, path: str, body: Any, parse: Callable[[Any], Found]
    ) -> Found:
        """The parsed response; temporary failures are retried with growing delays.

        Raises:
          Refusal: the server does not take this request.
          Malformed: so were all of several responses.
          UserError: the failure outlasted the server's patience, or is not temporary.
        """
        # Only the time between attempts counts: a request that is lost after an hour is no reason to give up.
        waited, attempt, malformed = 0.0, 0, 0
        while True:
            try:
                return parse(openai_answers.parse(await self.send(client, method, path, body)))
            except (Unavailable, Malformed) as error:
                malformed += isinstance(error, Malformed)
                if malformed == MOST_MALFORMED:
                    raise Malformed(self.told(str(error))) from None
                # Random, so that requests that failed together are not retried together.
                backoff = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)
                wait, attempt = getattr(error, "wait", 0.0) + backoff, attempt + 1
                waited += wait
                if waited > self._server.patience_seconds:
                    raise UserError(
                        f"{self.where}: no answer after {attempt} attempts, {self._server.patience_seconds:g} seconds "
                        f"of patience: {one_line(error)}; the answers so far are kept"
                    ) from None
                await asyncio.sleep(wait)

    def _refuse(self, response: httpx2.Response, body: Any) -> NoReturn:
        """Raises what a response with an error's status means."""
        status = response.status_code
        # A prompt is no secret, but no part of a line either.
        repeated = [turn["content"] for turn in (body or {}).get("messages", []) if len(turn["content"]) >= 16]
        said = redact.echoed(openai_answers.problem(response.content), [*self.secrets, *repeated])
        problem = f"status {status}: {said}"
        if status in RETRIED or status >= 500:
            raise Unavailable(problem, min(_asked_wait(response.headers), self._server.patience_seconds))
        if status in REFUSALS and body is not None:
            raise Refusal(problem)
        if 300 <= status < 400:
            moved = self.told(response.headers.get("Location", "elsewhere").partition("?")[0])
            raise UserError(f"{self.where}: status {status}: it moved to {moved}; set server.url")
        raise UserError(f"{self.where}: {problem}")

    def client(self) -> openai.AsyncOpenAI:
        """A client, to be used in an `async with` block; it retries nothing."""
        timeout = httpx2.Timeout(None, connect=30, read=self._server.timeout_seconds)
        http = openai.DefaultAsyncHttpxClient(
            timeout=timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self._server.concurrency),
            # A proxy is for hosts elsewhere; a redirect would turn a request into another one.
            trust_env=self.url.startswith("https:"),
            follow_redirects=False,
            event_hooks={"response": [_bound]},
        )
        client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key="none",  # It wants one; the header of each request is what is sent.
            max_retries=0,
            timeout=timeout,
            http_client=http,
            default_query=self._query,
            default_headers={"Accept-Encoding": "identity"},
        )
        # OpenAI's own, which the environment may name, are no business of other servers.
        if urlsplit(self.url).hostname != "api.openai.com":
            client.organization = client.project = None
        return client


class _Bounded(httpx2.AsyncByteStream):
    """A response's body, as long as an answer can be."""

    def __init__(self, stream: Any):
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for part in self._stream:
            read += len(part)
            if read > MOST_BYTES:
                raise httpx2.ReadError(f"a response of more than {MOST_BYTES:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    response.stream = _Bounded(response.stream)


def _address(url: str) -> tuple[str, dict[str, str], str | None]:
    """The URL alone, its query, and its `user:password`."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    bare = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    return bare, dict(parse_qsl(parts.query, keep_blank_values=True)), unquote(login) if at else None


def _authorization(server: ServerConfig, login: str | None) -> tuple[str | None, set[str]]:
    """The header that lets requests in, and all that must not be told of it."""
    if login is not None:
        encoded = base64.b64encode(login.encode()).decode()
        password = login.partition(":")[2] or login
        return f"Basic {encoded}", {password, quote(password, safe=""), encoded}
    if server.api_key_variable is None:
        return None, set()
    key = os.environ.get(server.api_key_variable, "").strip()
    if not key:
        name = redact.echoed(server.api_key_variable)
        raise UserError(f"api_key_variable: the environment variable {name} is not set")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"api_key_variable: what the environment variable {server.api_key_variable} holds is no key")
    return f"Bearer {key}", {key, quote(key, safe="")}


def _asked_wait(headers: httpx2.Headers) -> float:
    """Seconds that the server asks to wait, as a number or as a date; 0 if it does not ask."""
    asked = headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}(\.\d+)?", asked, re.ASCII):
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
