"""Whole runs against servers: messages instead of token ids, nonsense that never reaches the store, secrets without a
trace."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pydantic
import pytest

from data_pipeline.__main__ import STAGES, main
from data_pipeline.config import PipelineConfig, ServerConfig, SourceConfig
from data_pipeline.sampling import answer_keys
from data_pipeline.sampling.backends import openai_connection
from data_pipeline.sampling.backends.openai_answers import MOST_TOKENS
from fusejax.common import cli
from tests.data_pipeline.helpers import write_config, write_jsonl
from tests.data_pipeline.sampling.server import Asked, Reply, completion, serving

Behave = Callable[[Asked], Reply]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_connection, "FIRST_WAIT", 0.01)


def values_in(folder: Path, url: str, count: int = 4, source: Any = (), **server: Any) -> dict[str, Any]:
    """A configuration with one source behind a chat server."""
    prompts = write_jsonl(
        folder / "p.jsonl", [{"id": f"p{n}", "prompt": f"What is {n} + 4, please?"} for n in range(count)]
    )
    return {
        "output_dir": str(folder / "out"),
        "prompts": [{"path": str(prompts), "dataset": "d", "domain": "instruction"}],
        "sources": [{"name": "s", "model": "m", "server": {"url": url, "mode": "chat"} | server, **dict(source)}],
        "sampler": {"backend": "openai"},
        "domains": {"instruction": {"samples": 2, "rule": "one_source"}},
        "max_new_tokens": 50,
        "write": {"num_shards": 1, "eval_fraction": 0},
    }  # fmt: skip


def run(folder: Path, values: dict[str, Any], *stages: str, status: int = 0) -> None:
    """The command, in this process."""
    config = write_config(folder / "data.yaml", values)
    for stage in stages or ("prompts", "sample"):
        if not status or stage == "prompts":
            main([stage, "--config", str(config)])
            continue
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda stage=stage: main([stage, "--config", str(config)]))  # type: ignore[misc]
        assert ended.value.code == status


def table(folder: Path, stage: str = "samples") -> pl.DataFrame:
    return pl.read_parquet(folder / f"out/{stage}/s.parquet")


def kept(folder: Path) -> int:
    """Answers in the store."""
    store = folder / "out/samples/.answers/s"
    assert not (store / "journal.jsonl").exists()
    return sum(len(pl.read_parquet(part)) for part in store.glob("*.parquet"))


def test_a_chat_server_is_sent_messages_and_what_is_set(tmp_path: Path, capsys: pytest.CaptureFixture):
    with serving(lambda asked: Reply(completion(asked, f"seed {asked.body['seed']}"))) as server:
        values = values_in(tmp_path, server.url)
        run(tmp_path, values)
        assert len(server.asked) == 8
        for asked in server.asked:
            assert asked.path == "/v1/chat/completions" and "authorization" not in asked.headers
            assert asked.body.keys() == {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
            assert [turn["role"] for turn in asked.body["messages"]] == ["user"]
            assert 0 <= asked.body["seed"] < 2**31
        found = table(tmp_path)
        assert set(found["text"]) == {f"seed {asked.body['seed']}" for asked in server.asked}
        assert found["prompt_tokens"].to_list() == [7] * 8 and set(found["revision"]) == {"m"}
        assert set(found["engine"]) == {"chat server 127.0.0.1"} and found["seed"].max() > 2**31
        assert "a chat server renders the prompts and knows their tokens" in capsys.readouterr().err
        (tmp_path / "out/.state/sample s.json").unlink()
        run(tmp_path, values)
        assert len(server.asked) == 8  # Nothing is asked twice.
        main(["sample", "--dry-run", "--config", str(tmp_path / "data.yaml")])
        assert "prompt tokens" not in capsys.readouterr().out


def test_all_that_a_source_sets_is_sent_and_recorded(tmp_path: Path):
    source = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False}}
    source |= {"presence_penalty": 0.5, "frequency_penalty": 0.25, "stop": ["END"]}
    body = {"reasoning_effort": "low", "seed": None, "temperature": None}
    with serving(lambda asked: Reply(completion(asked))) as server:
        values = values_in(tmp_path, server.url, source=source, extra_body=body, served_as="served")
        run(tmp_path, values, *STAGES)
    sent = server.asked[0].body
    assert {name: sent[name] for name in source} == source
    assert sent["reasoning_effort"] == "low" and sent["model"] == "served" and not {"seed", "temperature"} & sent.keys()
    row = table(tmp_path).row(0, named=True)
    assert (row["top_k"], row["min_p"], row["temperature"], row["revision"]) == (20, 0.1, None, "served")
    assert (row["presence_penalty"], row["frequency_penalty"], row["stop"]) == (0.5, 0.25, ["END"])
    card = (tmp_path / "out/data_card.md").read_text()
    assert "| top-k | min-p |" in card and "reasoning_effort" in card and "enable_thinking" in card


def test_keys_depend_on_what_is_set_and_not_on_the_address(tmp_path: Path):
    prompt = pl.DataFrame({"id": ["p"], "domain": ["instruction"], "messages": [[{"role": "user", "content": "hi"}]]})

    def key(url: str = "http://host/v1", source: Any = (), **server: Any) -> str:
        config = PipelineConfig.model_validate(values_in(tmp_path, url, source=source, **server))
        (entry,) = config.sources
        common = answer_keys.sampling_parameters(config, entry, None)
        return answer_keys.plan_samples(config, entry, prompt, None, common).rows[0][0] or ""

    changed: list[dict[str, Any]] = [
        {"source": {"top_k": 20}},
        {"source": {"min_p": 0.1}},
        {"source": {"presence_penalty": 0.1}},
        {"source": {"frequency_penalty": 0.1}},
        {"source": {"stop": ["END"]}},
        {"source": {"temperature": 0.7}},
        {"source": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"extra_body": {"reasoning_effort": "low"}},
        {"extra_body": {"seed": None}},
        {"served_as": "other"},
    ]
    keys = [key(), *(key(**more) for more in changed)]
    assert len(set(keys)) == len(keys)
    same = [
        key("https://ann:pass@elsewhere/v1?code=1"),
        key(source={"top_k": -1, "min_p": 0, "stop": []}),
        key(answers_as="x"),
    ]
    same.append(key(source={"model": "m", "chat_template_kwargs": {}}, concurrency=3))
    assert {*same} == {keys[0]}
    assert keys[0] == "85b3d19b75db69f02490bba12b55c7121643ffc8c7e3cb399bd4007145238ef9", (
        "answers already kept would all be asked again"
    )
    first, second = (key(extra_body={"api_key": value, "effort": 1}) for value in ("one", "two"))
    assert first == second != keys[0]


def nonsense(**changes: Any) -> Behave:
    return lambda asked: Reply(completion(asked, **changes))


def in_choice(**changes: Any) -> Behave:
    def behave(asked: Asked) -> Reply:
        found = completion(asked)
        found["choices"][0] |= changes
        return Reply(found)

    return behave


NONSENSE: dict[str, Behave] = {
    "2**70 tokens": nonsense(usage={"prompt_tokens": 7, "completion_tokens": 2**70}),
    "too many tokens": nonsense(usage={"prompt_tokens": 7, "completion_tokens": MOST_TOKENS + 1}),
    "tokens below zero": nonsense(usage={"prompt_tokens": 7, "completion_tokens": -1}),
    "tokens as text": nonsense(usage={"prompt_tokens": 7, "completion_tokens": "3"}),
    "tokens true": nonsense(usage={"prompt_tokens": 7, "completion_tokens": True}),
    "tokens not a number": lambda _: Reply(b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": NaN}}'),
    "prompt of 2**70 tokens": nonsense(usage={"prompt_tokens": 2**70, "completion_tokens": 3}),
    "no usage": nonsense(usage=None),
    "usage a list": nonsense(usage=[3]),
    "text null": nonsense(text=None),
    "text a number": nonsense(text=4),
    "text a list": nonsense(text=["four"]),
    "no choice": nonsense(choices=[]),
    "two choices": nonsense(choices=[{"text": "a", "finish_reason": "stop"}] * 2),
    "choices null": nonsense(choices=None),
    "choices a text": nonsense(choices="four"),
    "choice a list": nonsense(choices=[["four"]]),
    "model a number": nonsense(model=5),
    "finished by nothing": in_choice(finish_reason=None),
    "finished by a list": in_choice(finish_reason=["stop"]),
    "finished by abort": in_choice(finish_reason="abort"),
    "an empty list": lambda _: Reply([]),
    "null": lambda _: Reply(None),
    "a text": lambda _: Reply("four"),
    "an HTML page": lambda _: Reply(b"<html><body>It works!</body></html>", headers={"Content-Type": "text/html"}),
    "half a JSON": lambda asked: Reply(json.dumps(completion(asked)).encode()[:60]),
    "nothing": lambda _: Reply(b""),
    "deep JSON": lambda _: Reply(b"[" * 100_000),
    "bytes": lambda _: Reply(bytes(range(256))),
    "a number of many digits": lambda _: Reply(b'{"usage": ' + b"9" * 10_000 + b"}"),
    "no content": lambda _: Reply(b"", 204),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_never_reaches_the_store(tmp_path: Path, case: str, capsys: pytest.CaptureFixture):
    with serving(NONSENSE[case]) as server:
        run(tmp_path, values_in(tmp_path, server.url, count=2), status=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: sources: s: all 4 requests failed: malformed_answer: "), lines
    assert sum(line.startswith("error: ") for line in lines) == 1 and len(lines[-1]) < 400
    assert kept(tmp_path) == 0 and not (tmp_path / "out/samples/s.parquet").exists()
    with serving(lambda asked: Reply(completion(asked))) as server:
        run(tmp_path, values_in(tmp_path, server.url, count=2))
    assert table(tmp_path)["text"].to_list() == ["four"] * 4 and kept(tmp_path) == 4


@pytest.mark.parametrize("case", ["2**70 tokens", "text null", "no choice", "half a JSON", "too many tokens"])
def test_nonsense_to_token_ids(tmp_path: Path, case: str, checkpoint: Path, capsys: pytest.CaptureFixture):
    with serving(NONSENSE[case]) as server:
        values = values_in(tmp_path, server.url, 2, {"model": str(checkpoint)}, mode="completions", served_as="m")
        run(tmp_path, values, status=2)
    assert "requests failed: malformed_answer: " in capsys.readouterr().err.splitlines()[-1]
    assert kept(tmp_path) == 0


def test_more_tokens_than_were_asked_for(tmp_path: Path, checkpoint: Path):
    with serving(nonsense(usage={"prompt_tokens": 7, "completion_tokens": 51})) as server:
        values = values_in(tmp_path, server.url, 2, {"model": str(checkpoint)}, mode="completions", served_as="m")
        run(tmp_path, values, status=2)
        values["sources"][0]["server"] |= {"mode": "chat"}  # There, thoughts may be counted apart.
        run(tmp_path, values)
    assert table(tmp_path)["completion_tokens"].to_list() == [51] * 4


def test_a_request_that_gets_only_nonsense_fails_alone_and_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    broken = True

    def behave(asked: Asked) -> Reply:
        bad = broken and "1 + 4" in asked.body["messages"][0]["content"]
        return Reply(completion(asked, None if bad else "four"))

    with serving(behave) as server:
        values = values_in(tmp_path, server.url)
        run(tmp_path, values)
        assert "2 requests got only malformed answers: the same command asks again" in capsys.readouterr().out
        lost = table(tmp_path).filter(prompt_id="p1")
        assert set(lost["finish_reason"]) == {"error"}
        assert set(lost["error"]) == {"malformed_answer: a text of type NoneType"}
        lines = [json.loads(line) for line in (tmp_path / "out/rejected/sample-s.jsonl").read_text().splitlines()]
        assert [(line["where"], line["reason"]) for line in lines] == [("p1", "malformed_answer")] * 2
        assert kept(tmp_path) == 6
        broken, before = False, len(server.asked)
        run(tmp_path, values)
        assert len(server.asked) == before + 2 and kept(tmp_path) == 8
        assert table(tmp_path)["text"].to_list() == ["four"] * 8
        assert (tmp_path / "out/rejected/sample-s.jsonl").read_text() == ""
        run(tmp_path, values)
        assert len(server.asked) == before + 2


def test_a_server_that_turns_to_nonsense_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    answered = 0

    def behave(asked: Asked) -> Reply:
        nonlocal answered
        answered += 1
        return Reply(completion(asked)) if answered <= 10 else Reply(b"<html>")

    with serving(behave) as server:
        run(tmp_path, values_in(tmp_path, server.url, count=60, concurrency=1), status=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "20 requests in a row failed: malformed_answer: no JSON: '<html>'" in last
    assert kept(tmp_path) == 10


@pytest.mark.parametrize(
    ("changes", "answered", "ends"),
    [
        ({}, "other", "m was asked, and other answered; if that is its name there, set answers_as"),
        ({}, "m-2", "m was asked, and m-2 answered"),
        ({}, "m-2026-01-31", None),
        ({"answers_as": "other"}, "other", None),
        ({"mode": "completions", "served_as": "m"}, "m-2026-01-31", "m was asked, and m-2026-01-31 answered"),
    ],
)
def test_another_model_answers(
    tmp_path: Path, changes: Any, answered: str, ends: str | None, checkpoint: Path, capsys: pytest.CaptureFixture
):
    source = {"model": str(checkpoint)} if "mode" in changes else {}
    with serving(nonsense(model=answered)) as server:
        run(tmp_path, values_in(tmp_path, server.url, source=source, **changes), status=2 if ends else 0)
    if ends:
        assert ends in capsys.readouterr().err.splitlines()[-1] and kept(tmp_path) == 0


def refuse(problem: Any, status: int = 400) -> Reply:
    return Reply({"error": {"message": problem}} if isinstance(problem, str) else problem, status)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("Unrecognized request argument supplied: top_k", "the server refuses top_k: status 400: Unrec"),
        ("unknown field top_k", "unknown field top_k; leave it out"),
        (
            "presence_penalty is not supported by this model",
            "presence_penalty is not supported by this model; leave it",
        ),
        ({"error": {"message": "bad parameter", "param": "min_p"}}, "refuses min_p: status 400: bad parameter (param"),
        (
            {"detail": [{"loc": ["body", "top_k"], "msg": "no", "input": "x" * 99}]},
            "refuses top_k: status 400: body",
        ),
        ("seed is not supported", "status 400: seed is not supported; server.extra_body: {seed: null} leaves it out"),
    ],
)
def test_a_refused_parameter_is_named(tmp_path: Path, problem: Any, said: str, capsys: pytest.CaptureFixture):
    with serving(lambda _: refuse(problem)) as server:
        run(
            tmp_path,
            values_in(tmp_path, server.url, source={"top_k": 5, "min_p": 0.1, "presence_penalty": 1}),
            status=2,
        )
    assert said in capsys.readouterr().err.splitlines()[-1] and kept(tmp_path) == 0


def test_a_few_refusals_and_nothing_else_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture):
    with serving(lambda _: refuse("no")) as server:
        run(tmp_path, values_in(tmp_path, server.url), status=2)
    assert "all 8 requests failed: refused: status 400: no" in capsys.readouterr().err and kept(tmp_path) == 0


def test_the_later_name_of_the_limit(tmp_path: Path):
    def behave(asked: Asked) -> Reply:
        if "max_tokens" in asked.body:
            return refuse("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return Reply(completion(asked))

    with serving(behave) as server:
        run(tmp_path, values_in(tmp_path, server.url, concurrency=2))
    assert server.asked[-1].body["max_completion_tokens"] == 50 and table(tmp_path)["text"].to_list() == ["four"] * 8


def test_what_a_model_will_not_answer_is_kept_as_refused(tmp_path: Path):
    def behave(asked: Asked) -> Reply:
        found = completion(asked, None)
        found["choices"][0]["finish_reason"] = "content_filter"
        return Reply(found if "1 + 4" in asked.body["messages"][0]["content"] else completion(asked))

    with serving(behave) as server:
        values = values_in(tmp_path, server.url)
        run(tmp_path, values)
        run(tmp_path, values)
    assert len(server.asked) == 8 == kept(tmp_path)
    refused = table(tmp_path).filter(prompt_id="p1")
    assert set(refused["error"]) == {"refused: finished by 'content_filter'"}


def test_thoughts_in_a_field_of_their_own(tmp_path: Path):
    def behave(asked: Asked) -> Reply:
        found = completion(asked, None if "1 + 4" in asked.body["messages"][0]["content"] else "four")
        found["choices"][0]["message"] |= {"reasoning": "Let me think."}
        found["choices"][0]["finish_reason"] = "length" if found["choices"][0]["message"]["content"] is None else "stop"
        return Reply(found)

    with serving(behave) as server:
        run(tmp_path, values_in(tmp_path, server.url))
    found = table(tmp_path)
    assert found["reasoning"].to_list() == ["Let me think."] * 8
    assert found.filter(prompt_id="p1").select("text", "truncated").rows() == [("", True)] * 2
    assert found.filter(pl.col("prompt_id") != "p1").select("text", "truncated").rows() == [("four", False)] * 6


def test_waits_as_long_as_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(openai_connection.asyncio, "sleep", sleep)
    waits = iter(["7", "2.5", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "1" * 400])

    def behave(asked: Asked) -> Reply:
        wait = next(waits, None)
        return Reply(completion(asked)) if wait is None else Reply(b"busy", 429, {"Retry-After": wait})

    with serving(behave) as server:
        run(tmp_path, values_in(tmp_path, server.url, count=1, concurrency=1))
    assert [round(seconds) for seconds in slept[:4]] == [7, 2, 0, 0] or [int(s) for s in slept[:4]] == [7, 2, 0, 0]
    assert len(slept) == 5


PASSWORD, CODE, KEY = "pa55-of-ann", "c0de-in-query", "sk-0123456789abcdef"


def everything(folder: Path) -> str:
    """All that was written, tables as text."""
    parts = []
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            parts.append(str(pl.read_parquet(path).to_dicts()))
        elif path.is_file():
            parts.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(parts)


def echo(asked: Asked) -> str:
    """Whatever a careless server knows of its client."""
    login = asked.headers.get("authorization", "").partition(" ")[2]
    basic = base64.b64decode(login + "==").decode(errors="replace") if "ann" not in login else login
    return f"\x1b[31m\r\nno: {asked.path} {asked.headers} {basic} {asked.body}\x00\u202e" + "x" * 100_000


@pytest.mark.parametrize("login", ["url", "key"])
@pytest.mark.parametrize("status", [200, 400, 401, 503])
def test_no_secret_reaches_a_file_or_a_line(
    tmp_path: Path, login: str, status: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SERVER_KEY", KEY)

    def behave(asked: Asked) -> Reply:
        if status == 200 or "1 + 4" not in asked.body["messages"][0]["content"]:
            return Reply(completion(asked))
        return Reply({"error": {"message": echo(asked)}}, status)

    with serving(behave) as server:
        host = f"127.0.0.1:{server.port}/v1"
        url = f"http://ann:{PASSWORD}@{host}?code={CODE}" if login == "url" else f"http://{host}?code={CODE}"
        more = {} if login == "url" else {"api_key_variable": "SERVER_KEY"}
        values = values_in(tmp_path, url, patience_seconds=0.1, **more)
        if status in (401, 503):
            run(tmp_path, values, status=2)
        else:
            run(tmp_path, values, *STAGES)
            assert "http://" in (tmp_path / "out/sft/manifest.json").read_text()
        main(["sample", "--dry-run", "--config", str(tmp_path / "data.yaml")])
        with pytest.raises(SystemExit):
            cli.run(lambda: main(["sample", "--config", str(tmp_path / "data.yaml"), f"sources.0.server.url={url}"]))
        sent = server.asked[0]
    basic = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    assert sent.headers["authorization"] == (f"Basic {basic}" if login == "url" else f"Bearer {KEY}")
    assert sent.path == f"/v1/chat/completions?code={CODE}"
    printed = capsys.readouterr()
    found = everything(tmp_path / "out") + printed.out + printed.err
    for secret in (PASSWORD, CODE, KEY, basic):
        assert secret not in found
    assert "What is 1 + 4, please?" not in printed.err
    assert all(line.isprintable() and len(line) < 600 for line in printed.err.splitlines())
    if status == 400:
        errors = table(tmp_path)["error"].drop_nulls()
        assert len(errors) == 2 and all(error.isprintable() and len(error) < 400 for error in errors)


def test_an_answer_that_repeats_the_key_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVER_KEY", KEY)
    with serving(lambda asked: Reply(completion(asked, f"You sent {asked.headers['authorization']}"))) as server:
        run(tmp_path, values_in(tmp_path, server.url, api_key_variable="SERVER_KEY"), status=2)
    assert kept(tmp_path) == 0 and KEY not in everything(tmp_path / "out")


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"url": f"http://ann:{PASSWORD}/x@host/v1"}, "no URL with a host"),
        ({"url": f"http://ann:{PASSWORD}@host/v1", "api_key_variable": "KEY"}, "a server takes one of them"),
        ({"url": "http://host/v1/chat/completions"}, "ends at /v1"),
        ({"url": "http://host/v1", "api_key_variable": KEY}, "should match pattern"),
        ({"url": "http://host/v1", "extra_body": {"top_k": 5}}, "top_k is set elsewhere, by top_k"),
        ({"url": "http://host/v1", "extra_body": {"stop": ["x"]}}, "stop is set elsewhere, by stop"),
        ({"url": "http://host/v1", "extra_body": {"x": float("nan")}}, "expected values that JSON has"),
    ],
)
def test_mistakes_in_the_entry_of_a_server(server: dict[str, Any], message: str):
    with pytest.raises(pydantic.ValidationError, match=message) as raised:
        ServerConfig.model_validate(server)
    assert PASSWORD not in str(raised.value) and KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"max_model_len": 5}, "max_model_len: behind a chat server"),
        ({"revision": "main"}, "revision: behind a chat server"),
        ({"top_k": 0}, "at least 1; -1 or null for no limit"),
        ({"stop": ["a", ""]}, "an empty text would end every answer at once"),
        ({"chat_template_kwargs": {"messages": []}}, "messages is no argument"),
    ],
)
def test_mistakes_in_the_entry_of_a_source(source: dict[str, Any], message: str):
    server = {"url": "http://host/v1", "mode": "chat"}
    with pytest.raises(pydantic.ValidationError, match=message):
        SourceConfig.model_validate({"name": "s", "model": "m", "server": server, **source})


def test_after_the_error_line_there_is_nothing(tmp_path: Path):
    """As a user sees it: a server that refuses all, beside another one; no traceback of what is still under way."""
    with serving(lambda _: refuse("the model is asleep")) as bad, serving(lambda a: Reply(completion(a))) as good:
        values = values_in(tmp_path, bad.url, count=30)
        values["sources"].append(values["sources"][0] | {"name": "t", "server": {"url": good.url, "mode": "chat"}})
        run(tmp_path, values, "prompts")
        ended = subprocess.run(
            [sys.executable, "-m", "data_pipeline", "sample", "--config", str(tmp_path / "data.yaml")],
            capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONASYNCIODEBUG": "1"},
        )  # fmt: skip
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert re.match(
        r"error: sources: s: the first \d+ requests failed: refused: status 400: the model is as", lines[-1]
    )
    assert not any(word in ended.stderr for word in ("Traceback", "never retrieved", "destroyed", "Event loop"))
    assert len(pl.read_parquet(tmp_path / "out/samples/t.parquet")) == 60
