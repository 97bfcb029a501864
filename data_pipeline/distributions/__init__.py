"""Stage `distributions`: what every source would have said at each place of the chosen answers.

Reads   `sft/train-*`; source models
Writes  `distributions/{source}/train-*` with a `manifest.json` and the source's `tokenizer.json`,
        `rejected/distributions-{source}-train.jsonl`

`stage` is the stage; `answers` turns an example into the source's tokens, or says why it cannot; a backend gives the
log-probabilities at each of them: `transformers_backend` or `vllm_backend`.
"""
