"""A user's Python function as reward or verifier, named by its import path."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from data_pipeline.scoring.scorer import Item, Score, Verdict
from data_pipeline.stage_files import fingerprint
from fusejax.common.cli import UserError, one_line


class FunctionReward:
    """`module:attribute` is `score(prompt: dict, text: str) -> (reward, verdict)`, or a class with such a method."""

    def __init__(self, path: str, key: str):
        self._score, self.fingerprint = _load(path, key, "score")

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order; see `scorer.Scorer`."""
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Score:
        try:
            reward, verdict = self._score(item.prompt, item.text)
            reward = None if reward is None else float(reward)
        except Exception as error:  # The user's code on one record: counted, and the run goes on.
            return _failed("reward", error)
        return _judged(reward, verdict)


class FunctionVerifier:
    """`module:attribute` is `check(prompt: dict, text: str) -> verdict`, or a class with such a method.

    The prompt is its row of `prompts.parquet`: id, dataset, domain, messages, answer, tests. The verdict is "correct",
    "wrong", "unknown", or None where the function has no opinion.
    """

    def __init__(self, path: str, key: str):
        self._check, self.fingerprint = _load(path, key, "check")

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order; see `scorer.Scorer`."""
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Score:
        try:
            verdict = self._check(item.prompt, item.text)
        except Exception as error:  # The user's code on one record: counted, and the run goes on.
            return _failed("verifier", error)
        return _judged(None, verdict)


def _load(path: str, key: str, method: str) -> tuple[Callable[[dict[str, Any], str], Any], str]:
    """The function that a config names, and a fingerprint that changes with its module's source.

    Raises:
      UserError: the path leads nowhere, or to something that is not callable.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"{key}: {path!r} is not of the form module:attribute")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # Whatever the user's module raises.
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{key}: cannot import {module_name!r}: {problem}") from error
    if not hasattr(module, attribute):
        raise UserError(f"{key}: module {module_name!r} has no {attribute!r}")
    found: Any = getattr(module, attribute)
    if inspect.isclass(found):
        found = getattr(found(), method, None)
    if not callable(found):
        raise UserError(f"{key}: {path} cannot be called")
    source = inspect.getsourcefile(module)
    return found, fingerprint(path, *([Path(source)] if source else []))


def _failed(what: str, error: Exception) -> Score:
    return Score(verdict="unknown", detail=f"{what}_failed: {type(error).__name__}: {one_line(error)}")


def _judged(reward: float | None, verdict: Any) -> Score:
    if verdict is not None and verdict not in get_args(Verdict):
        return Score(reward, "unknown", detail=f"bad_verdict: {verdict!r}")
    return Score(reward, verdict)
