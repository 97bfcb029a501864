"""Tokens a second out of the shards, against what a training step eats of them.

    python -m benchmarks.loader ANSWERS.jsonl.gz [--examples 20000] [--plans 10000 30000 100000] [--chips 4 32]

ANSWERS holds one JSON object a line with `prompt` and `response`, several answers to a prompt: each is an SFT example,
the longest and another make a pair. They are repeated up to `--examples` and written as shards; the rest is the path of
a training run with the recipe's limit of 2048 and 128 examples a step: open and verify, tokenise (with the tokenizer
of `packing_fill.py`), keep the tokens, load them, plan, pack. What a host has in front of it:

- *Start*: seconds once a run, in one process and in one for each core.
- *Plan*: seconds to the first step, then milliseconds a step, for data sets of several sizes with these lengths; and
  seconds to plan the pass of evaluation and reference, which holds every example.
- *Steps*: a host of four chips, one row each, alone or one of several (all plan all rows, each makes its own). First
  with a consumer that asks for the next step at once, then with one that sleeps as long as the step would take: how
  long did it wait for each? A step takes `tokens * FLOPs a token / (chips * peak * MFU)`, FLOPs a token those of
  `fusejax.training.throughput.model_flops`, peak that of the chip in `fusejax.planning.topology`.

Start and steps are processes of their own.
"""

import argparse
import gzip
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from benchmarks.packing_fill import train_tokenizer
from benchmarks.process import about, alone, forget_peak
from benchmarks.training.worker import peak_of_process
from fusejax.data.batch import max_examples_per_row
from fusejax.data.chat import load_tokenizer
from fusejax.data.cores import tokenize_on_all_cores
from fusejax.data.examples import Tokenized, tokenize
from fusejax.data.loader import StepBatch, eval_batches, train_batches
from fusejax.data.packing import PackingPlan, num_steps, plan_eval
from fusejax.data.records import Kind, Message, PreferencePair, Record, SFTExample, open_shards, write_shards
from fusejax.training import tokens

MAX_LENGTH, BATCH_SIZE = 2048, 128
ROW_LENGTHS: dict[Kind, int] = {"sft": MAX_LENGTH, "dpo": 2 * MAX_LENGTH}
CHIPS_A_HOST = 4
LEAST_STEPS = 4
MODELS = ("llama3.2-1b", "llama3.1-8b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--kinds", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--plans", nargs="+", type=int, default=[10_000, 30_000, 100_000])
    parser.add_argument("--chips", nargs="+", type=int, default=[4, 32])
    parser.add_argument("--chip", default="v5p", help="one of fusejax.planning.topology.CHIPS")
    parser.add_argument("--mfu", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=20, help="that each sleeping consumer goes on, at least")
    args = parser.parse_args()
    with gzip.open(args.answers, "rt", encoding="utf-8") as file:
        answers = [json.loads(line) for line in file]
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer([text for each in answers for text in (each["prompt"], each["response"])]).save_pretrained(
            f"{folder}/tokenizer"
        )
        eaten = alone(tokens_a_second_a_chip, args.chip, args.mfu)
        for kind in args.kinds:
            records = make(answers, kind, args.examples)
            write_shards(f"{folder}/{kind}", "train", records, kind=kind, num_shards=8, manifest={})
            print(f"\n{kind}, {args.examples:,} examples")
            alone(start, folder, kind)
            alone(plan, folder, kind, args.plans)
            for chips in args.chips:
                rates = {model: chips * rate for (model, length), rate in eaten.items() if length == ROW_LENGTHS[kind]}
                alone(steps, folder, kind, chips, rates, args.seconds)
    print(f"\n{args.chip} at {args.mfu:.0%} MFU; {about('numpy', 'grain', 'array_record', 'tokenizers')}")


def make(answers: list[dict[str, str]], kind: Kind, count: int) -> Iterator[Record]:
    """`count` records, from the answers in random order, as often as it takes."""
    by_prompt: dict[str, list[str]] = {}
    for each in answers:
        by_prompt.setdefault(each["prompt"], []).append(each["response"])
    found: list[tuple[str, ...]] = [(each["prompt"], each["response"]) for each in answers]
    if kind == "dpo":
        # Not the same answer twice: such a pair would be rejected.
        answers_of = {prompt: list(dict.fromkeys(responses)) for prompt, responses in by_prompt.items()}
        found = [
            (prompt, *sorted(responses, key=len, reverse=True)[:2])
            for prompt, responses in answers_of.items()
            if len(responses) > 1
        ]
    order = np.random.default_rng(0).permutation(len(found))
    for i in range(count):
        prompt, *responses = found[order[i % len(found)]]
        question: Message = {"role": "user", "content": prompt}
        turns: list[Message] = [{"role": "assistant", "content": response} for response in responses]
        common = {"id": str(i), "dataset": "answers", "domain": "instruction", "source_model": "mixed"}
        if kind == "sft":
            yield SFTExample(**common, messages=[question, *turns])
        else:
            chosen, rejected = ([turn] for turn in turns)
            yield PreferencePair(
                **common, prompt=[question], chosen=chosen, rejected=rejected, chosen_score=1.0, rejected_score=0.0
            )


def tokens_a_second_a_chip(name: str, mfu: float) -> dict[tuple[str, int], float]:
    """What a step of each model, with rows of each length, eats."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is computed
    # Here, for JAX would be in the memory of all that is measured.
    import jax
    import jax.numpy as jnp

    from fusejax.models.decoder.decoder import abstract_decoder
    from fusejax.planning.architecture import find_architecture
    from fusejax.planning.topology import CHIPS
    from fusejax.training.throughput import model_flops

    found = {}
    for model in MODELS:
        config, _ = find_architecture(f"configs/models/{model}.json", Path())
        _, shapes = abstract_decoder(config, param_dtype=jnp.dtype("float32"), compute_dtype=jnp.dtype("bfloat16"))
        parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
        for length in ROW_LENGTHS.values():
            found[model, length] = CHIPS[name].flops * mfu / model_flops(config, parameters, length, training=True)
    return found


def start(folder: str, kind: Kind) -> None:
    """What a host that is alone does before the first step."""
    tokenizer = load_tokenizer(f"{folder}/tokenizer")
    before = forget_peak()
    laps = [time.perf_counter()]
    shards = open_shards(f"{folder}/{kind}/train")
    laps.append(time.perf_counter())
    tokenized = tokenize(shards, tokenizer, max_length=MAX_LENGTH)
    laps.append(time.perf_counter())
    tokens.save(epath.Path(f"{folder}/{kind}.npz"), {}, tokenized)
    laps.append(time.perf_counter())
    again = tokenize_on_all_cores(shards, tokenizer, records=range(len(shards)), max_length=MAX_LENGTH)
    laps.append(time.perf_counter())
    assert again.fingerprint == tokenized.fingerprint
    opened, made, kept, spread = np.diff(laps)
    count = tokenized.lengths.sum()
    print(f"  start: open {opened:.2f} s, tokenise {made:.1f} s ({count / made:,.0f} tokens/s), keep {kept:.2f} s")
    print(f"  start: tokenise by a process for each core {spread:.1f} s ({count / spread:,.0f} tokens/s)")
    print(f"  start: memory {before / 1e9:.2f} GB before, peak {peak_of_process() / 1e9:.2f}; {tokenized.summary()}")


def load(folder: str, kind: Kind) -> Tokenized:
    found = tokens.load(epath.Path(f"{folder}/{kind}.npz"), {})
    assert found is not None
    return found


def plan(folder: str, kind: Kind, counts: list[int]) -> None:
    measured, row_length = load(folder, kind).lengths, ROW_LENGTHS[kind]
    limit = max_examples_per_row(row_length)
    for count in counts:
        lengths = np.random.default_rng(0).choice(measured, count)
        laps = [time.perf_counter()]
        plan = PackingPlan(lengths, batch_size=BATCH_SIZE, row_length=row_length, max_examples_per_row=limit, seed=0)
        plan.rows(0)
        laps.append(time.perf_counter())
        last = num_steps(count, BATCH_SIZE, epochs=1)
        for step in range(last):
            plan.rows(step)
        laps.append(time.perf_counter())
        plan_eval(lengths, row_length=row_length, max_examples_per_row=limit)
        laps.append(time.perf_counter())
        first, steps, once = np.diff(laps)
        print(
            f"  plan of {count:,}: first step {first:.3f} s, {1000 * steps / last:.2f} ms a step, all once {once:.2f} s"
        )


def steps(folder: str, kind: Kind, chips: int, rates: dict[str, float], seconds: float) -> None:
    """The consumer that does nothing, then one for each model that sleeps. `rates`: tokens a second that they eat."""
    started = time.perf_counter()
    before = forget_peak()
    tokenized = load(folder, kind)
    loaded = time.perf_counter() - started
    layout: dict[str, Any] = {
        "row_length": ROW_LENGTHS[kind],
        "rows_per_microbatch": chips,
        "local_rows": range(min(chips, CHIPS_A_HOST)),
    }

    def batches() -> Iterator[StepBatch]:
        count = num_steps(len(tokenized), BATCH_SIZE, epochs=1)
        return train_batches(tokenized, batch_size=BATCH_SIZE, seed=0, num_steps=count, **layout)

    started = time.perf_counter()
    made = [(batch.tokens, time.perf_counter() - started) for batch in batches()]
    count, elapsed = sum(tokens for tokens, _ in made), made[-1][1]
    print(
        f"  {chips} chips: tokens loaded in {loaded:.2f} s; {1000 * elapsed / len(made):.1f} ms a step, "
        f"{count / elapsed:,.0f} tokens/s"
    )
    if kind == "dpo":
        started = time.perf_counter()
        for _ in eval_batches(tokenized, **layout):
            pass
        rate = tokenized.lengths.sum() / (time.perf_counter() - started)
        print(f"  {chips} chips: pass of the reference {rate:,.0f} tokens/s")
    for model, rate in rates.items():
        first, *rest = waits(batches(), rate, seconds)
        worked = sum(work for _, work in rest)
        waited = sum(wait for wait, _ in rest)
        print(
            f"  {chips} chips, {model}: eats {rate:,.0f} tokens/s; waits {first[0]:.3f} s for the first step, then "
            f"{waited / (waited + worked):.3%} of {len(rest)} steps, {1000 * max(rest)[0]:.1f} ms at most"
        )
    print(f"  {chips} chips: memory {before / 1e9:.2f} GB before, peak {peak_of_process() / 1e9:.2f}", flush=True)


def waits(batches: Iterator[StepBatch], rate: float, seconds: float) -> list[tuple[float, float]]:
    """Seconds that a consumer of `rate` tokens a second waited for each step, and that it then took for it."""
    found: list[tuple[float, float]] = []
    asked = time.perf_counter()
    until = asked + seconds
    for batch in batches:
        began = time.perf_counter()
        time.sleep(batch.tokens / rate)
        done = time.perf_counter()
        found.append((began - asked, done - began))
        if done > until and len(found) > LEAST_STEPS:
            break
        asked = time.perf_counter()
    return found


if __name__ == "__main__":
    main()
