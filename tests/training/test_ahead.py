"""Programs compiled beside other work."""

import dataclasses
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fusejax.training.ahead import Ahead
from fusejax.training.goodput import Clock
from fusejax.training.programs import Programs
from tests.tiny_runs import train_command
from tests.training.test_programs import MODEL, programs


def filled(shapes: Any) -> Any:
    """Arrays of these shapes and layouts, with numbers in them."""

    def fill(x: jax.ShapeDtypeStruct) -> jax.Array:
        numbers = jnp.arange(x.size).reshape(x.shape) % 7
        scale = 100 if jnp.issubdtype(x.dtype, jnp.floating) else 1
        return jax.device_put((numbers / scale).astype(x.dtype), x.sharding)

    return jax.tree.map(fill, shapes)


def test_the_same_bits():
    model = dataclasses.replace(
        MODEL, vocab_size=64, hidden_size=32, intermediate_size=32, head_dim=16, windows=(None,)
    )
    made, late = (programs(model=model, num_steps=steps, max_length=64) for steps in (None, 5))
    with Ahead(made, Clock()) as ahead:
        ahead.compile("accumulate")
        made.set_steps(5)
        ahead.compile("accumulate", "apply", "evaluate")  # what is begun is left alone
        found = []
        for each in (made, late):
            params, microbatch = filled((each.params, each.microbatch))
            sums = each.accumulate(params, *filled(each.accumulator), microbatch)
            state = each.init_state(filled(each.params))
            found.append((each.evaluate(params, microbatch), *each.apply(state, sums)))
    same = jax.tree.map(lambda a, b: bool((a == b).all()) and a.sharding == b.sharding, *found)
    assert all(jax.tree.leaves(same))


class Blocked(Programs):
    """One program that is compiled when the test says so."""

    def __init__(self, *names: str) -> None:
        self.go_on, self.compiled = threading.Event(), []

        def compile(name: str) -> Any:
            assert self.go_on.wait(60)
            self.compiled.append(name)
            return lambda *arguments: (name, *arguments)

        for name in names:
            lowered = SimpleNamespace(compile=lambda name=name: compile(name))
            setattr(self, name, SimpleNamespace(lower=lambda *_, lowered=lowered: lowered))

    def arguments(self, name: str) -> tuple[Any, ...]:
        return ()


def test_a_call_waits_for_its_program():
    made, clock = Blocked("accumulate", "evaluate"), Clock()
    with Ahead(made, clock) as ahead:
        assert not ahead.is_busy()
        ahead.compile("accumulate", "evaluate")
        assert ahead.is_busy()
        threading.Timer(0.1, made.go_on.set).start()
        assert made.evaluate(1, 2) == ("evaluate", 1, 2)
        assert made.accumulate(3) == ("accumulate", 3)
        assert not ahead.is_busy()
    assert made.compiled == ["accumulate", "evaluate"]
    assert clock.seconds()["compiling"] > 0


def test_what_has_not_begun_is_given_up():
    made = Blocked("accumulate", "evaluate")
    with pytest.raises(ZeroDivisionError), Ahead(made, Clock()) as ahead:
        ahead.compile("accumulate", "evaluate")
        raise ZeroDivisionError
    assert ahead.is_busy()  # with the first
    made.go_on.set()
    ahead._thread.shutdown()
    assert not ahead.is_busy() and made.compiled == ["accumulate"]


FOR_EVER = """
import sys, threading
import jax
from fusejax import train
from fusejax.common.cli import run
from fusejax.training import tokenizing

compiles, tokenize = threading.Event(), tokenizing.tokenize_on_all_cores
jax.stages.Lowered.compile = lambda *_, **__: compiles.set() or threading.Event().wait()
tokenizing.tokenize_on_all_cores = lambda *those, **rules: compiles.wait() and tokenize(*those, **rules)
run(lambda: train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_prompt_length": 3}, "error: data {world}/sft/train: all 48 examples are rejected, as prompt_too_long"),
        ({"batch_size": 1000}, "error: batch_size 1000"),
    ],
)
def test_a_mistake_does_not_wait_for_the_compiler(world, tmp_path, changes, message):
    *_, path = train_command(world, tmp_path / "run", **changes)
    command = [sys.executable, "-c", FOR_EVER, "--config", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(message.format(world=world))
    kept = {file.name for file in (tmp_path / "run").glob("tokens/*")}
    assert kept == ({"train.npz", "eval.npz"} if "batch_size" in changes else set())
