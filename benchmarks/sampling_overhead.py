"""What the stage `sample` costs beside vLLM's own `LLM.generate`, on the same requests and the same engine settings.

    VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 \
        .venv-vllm/bin/python benchmarks/sampling_overhead.py --prompts 200 --samples 4 --rounds 5

MODEL is a checkpoint's directory; without one, a random model is made. Both sides run in this process, on one
engine, in turns whose order alternates, so that what else the machine does meets both. Ours is the stage's
whole loop: requests, progress, and each answer in the journal when it is finished. Theirs gives the same prompts,
parameters and seeds to `generate` at once, and keeps nothing. Both must give the same texts. A first round, which is
not counted, warms caches up. Where others use the machine too, the processor's time says more than the clock on the
wall: with these settings all work is in this process. Both vary by several percent from round to round; so each side's
time outside of the engine's `step` and `add_request`, which both call alike, is told as well.

On two busy cores, with `--prompts 50 --max-new-tokens 64 --rounds 6`: ours took 0.98 times as much of the processor as
`generate` and 0.96 times as long (medians of the rounds' ratios), and spent 0.86 % outside of the engine, where
`generate` spent 0.40 %.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vllm
from etils import epath

from data_pipeline.config import SourceConfig
from data_pipeline.sampling import answer_store
from data_pipeline.sampling import stage as sample
from data_pipeline.sampling.answer_keys import SamplePlan, default_sampling
from data_pipeline.sampling.answer_store import AnswerStore
from data_pipeline.sampling.backends.vllm_sampler import VllmSampler
from data_pipeline.sampling.progress import Progress
from data_pipeline.sampling.sampler import Request
from data_pipeline.stage_files import stable_hash

SIDES = ("ours", "LLM.generate")
SIZES = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024, "initializer_range": 0.1,
    "bos_token_id": None, "eos_token_id": 7, "pad_token_id": 7,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sampling-") as folder:
        model = Path(options.model) if options.model else make_model(Path(folder) / "model")
        compare(model, options, Path(folder))


def compare(model: Path, options: argparse.Namespace, folder: Path) -> None:
    # Chunked prefill ends in an error on CPUs where requests have seeds.
    engine = {
        "max_num_seqs": options.max_num_seqs,
        "enforce_eager": True,
        "disable_log_stats": True,
        "enable_chunked_prefill": False,
    }
    context = 64 + options.max_new_tokens
    source = SourceConfig(name="s", model=str(model), engine=engine)
    ours = VllmSampler(source, model, "auto", context)
    theirs = vllm.LLM(str(model), max_model_len=context, **engine)
    # One engine for both: two differ in speed by where their memory lies. The spare one's end would end the other.
    spare, theirs.llm_engine = theirs.llm_engine, ours._engine
    requests = [
        Request(
            f"{prompt}-{index}",
            (*range(5, 45), 50 + prompt % 200),
            stable_hash(0, str(prompt), str(index)),
            options.max_new_tokens,
            default_sampling(source),
        )
        for prompt in range(options.prompts)
        for index in range(options.samples)
    ]
    watch = Stopwatch(ours._engine)
    inside = dict.fromkeys(SIDES, 0.0)
    clocks: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
    # Side -> clock -> a number a round.
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in SIDES}
    tokens = 0
    for turn in range(options.rounds + 1):  # The first one warms up.
        for name in SIDES if turn % 2 else SIDES[::-1]:
            watch.seconds = 0.0
            started = {clock: now() for clock, now in clocks.items()}
            if name == "ours":
                run_ours(ours, source, requests, folder / str(turn))
            else:
                outputs = run_theirs(theirs, requests)
            for clock, now in clocks.items():
                seconds[name][clock] += [now() - started[clock]] if turn else []
            inside[name] += watch.seconds if turn else 0.0
        table = answer_store.read(epath.Path(folder / str(turn)), sample.STORED)
        tokens = int(table["completion_tokens"].sum())
        found = dict(table.select("key", "text").iter_rows())
        assert found == {r.key: o.outputs[0].text for r, o in zip(requests, outputs, strict=True)}, "texts differ"
    for clock in clocks:
        ours_took, theirs_took = (seconds[name][clock] for name in SIDES)
        for name in SIDES:
            took = seconds[name][clock]
            middle = statistics.median(took)
            spread = f"median of {len(took)}, {min(took):.2f} to {max(took):.2f}"
            print(f"{clock:10}{name:13} {middle:6.2f} s ({spread})  {tokens / middle:7,.0f} tokens/s")
        ratio = statistics.median(mine / other for mine, other in zip(ours_took, theirs_took, strict=True))
        print(f"{clock:10}ours / LLM.generate: {ratio:.3f} (median of the rounds' ratios)", flush=True)

    for name in SIDES:
        whole = sum(seconds[name]["processor"])
        outside = whole - inside[name]
        print(f"processor {name:13} outside of the engine {outside:.3f} of {whole:.1f} s, {outside / whole:.2%}")
    del spare


class Stopwatch:
    """The processor's time within an engine's `step` and `add_request`."""

    def __init__(self, engine: vllm.LLMEngine):
        self.seconds = 0.0
        for name in ("step", "add_request"):
            setattr(engine, name, self._timed(getattr(engine, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds += time.process_time() - started

        return timed


def run_ours(sampler: VllmSampler, source: SourceConfig, requests: list[Request], folder: Path) -> None:
    asked = SamplePlan([], {request.key: request for request in requests}, {})
    common = {
        "model": source.model, "revision": "r", "dtype": "auto", "temperature": source.temperature,
        "top_p": source.top_p, "repetition_penalty": source.repetition_penalty,
    }  # fmt: skip
    with AnswerStore(epath.Path(folder), sample.STORED) as kept:
        progress = Progress("sample s", 0, len(requests))
        sample.ask(sampler, source, asked, common, kept, progress, threading.Event())


def run_theirs(llm: vllm.LLM, requests: list[Request]) -> list[vllm.RequestOutput]:
    params = [
        vllm.SamplingParams(temperature=0.8, top_p=0.95, max_tokens=request.max_tokens, seed=request.seed)
        for request in requests
    ]
    return llm.generate([{"prompt_token_ids": list(r.prompt)} for r in requests], params, use_tqdm=False)


def make_model(directory: Path) -> Path:
    """A random Llama and a tokenizer of words that mean nothing."""
    import tokenizers
    import torch
    import transformers

    words = tokenizers.models.WordLevel({f"w{index}": index for index in range(SIZES["vocab_size"])}, unk_token="w0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), eos_token="w7")
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    main()
