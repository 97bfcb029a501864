"""What the stage `sample` costs beside vLLM's own `LLM.generate`, on the same requests and the same engine settings.

    VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 \
        python benchmarks/sampling_overhead.py MODEL --prompts 200 --samples 4 --max-new-tokens 128 --rounds 5

With vLLM's environment; MODEL is a checkpoint's directory. Both sides run in this process, on one engine each, in turns
whose order alternates, so that what else the machine does meets both. Ours is the whole loop: a seed of its own for each
sample, and each answer in the journal when it is finished. Theirs gives the same prompts, parameters and seeds to
`generate` and keeps nothing. Prefix caches are emptied before each turn. Both must give the same texts.


"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import vllm
from etils import epath

from data_pipeline import sample
from data_pipeline.answers import AnswerStore
from data_pipeline.config import SourceConfig
from data_pipeline.samplers.base import Request
from data_pipeline.samplers.vllm_sampler import VllmSampler
from data_pipeline.store import rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-model-len", type=int, default=256)
    options = parser.parse_args()

    # Chunked prefill ends in an error on CPUs where requests have seeds.
    engine = {
        "max_num_seqs": options.max_num_seqs,
        "enforce_eager": True,
        "disable_log_stats": True,
        "enable_chunked_prefill": False,
    }
    source = SourceConfig(name="s", model=options.model, engine=engine)
    ours = VllmSampler(source, Path(options.model), "auto", options.max_model_len)
    theirs = vllm.LLM(options.model, max_model_len=options.max_model_len, **engine)
    requests = [
        Request(f"{prompt}-{index}", (*range(5, 45), 5 + prompt % 200), rank(0, str(prompt), str(index)), 0)
        for prompt in range(options.prompts)
        for index in range(options.samples)
    ]
    requests = [Request(r.key, r.prompt, r.seed, options.max_new_tokens) for r in requests]
    seconds: dict[str, list[float]] = {"ours": [], "LLM.generate": []}
    tokens = 0
    for turn in range(options.rounds + 1):  # The first one warms up.
        found: dict[str, dict[str, str]] = {}
        for name in sorted(seconds, reverse=turn % 2 == 0):
            started = time.perf_counter()
            if name == "ours":
                found[name], tokens = _ours(ours, requests)
            else:
                found[name] = _theirs(theirs, requests)
            if turn:
                seconds[name].append(time.perf_counter() - started)
        assert found["ours"] == found["LLM.generate"], "the two do not give the same answers"
        ours._engine.reset_prefix_cache()
        theirs.reset_prefix_cache()
    for name, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:13} {middle:6.2f} s (median of {len(values)}, {spread})  {tokens / middle:8,.0f} tokens/s")
    ratios = [mine / other for mine, other in zip(seconds["ours"], seconds["LLM.generate"], strict=True)]
    print(f"ours / LLM.generate: {statistics.median(ratios):.3f} (median of the rounds' ratios)")


def _ours(sampler: VllmSampler, requests: list[Request]) -> tuple[dict[str, str], int]:
    folder = tempfile.mkdtemp(prefix="sampling-")
    texts: dict[str, str] = {}
    tokens = 0
    with AnswerStore(epath.Path(folder), sample.STORED) as answers:
        for batch in sampler.generate(requests, ()):
            rows = [dict.fromkeys(sample.STORED) | {"key": request.key} | vars(answer) for request, answer in batch]
            answers.append(rows)
            texts |= {request.key: answer.text for request, answer in batch}
            tokens += sum(answer.completion_tokens for _, answer in batch)
    shutil.rmtree(folder)
    return texts, tokens


def _theirs(llm: vllm.LLM, requests: list[Request]) -> dict[str, str]:
    params = [
        vllm.SamplingParams(temperature=0.8, top_p=0.95, max_tokens=request.max_tokens, seed=request.seed)
        for request in requests
    ]
    outputs = llm.generate([{"prompt_token_ids": list(r.prompt)} for r in requests], params, use_tqdm=False)
    return {request.key: output.outputs[0].text for request, output in zip(requests, outputs, strict=True)}


if __name__ == "__main__":
    main()
