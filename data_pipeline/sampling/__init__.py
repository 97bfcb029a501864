"""Stage `sample`.

Reads   `prompts.parquet`; source models, or answers that come with a data set
Writes  `samples/{source}.parquet`, `rejected/sample-{source}.jsonl`; for good, `samples/.answers/{source}/`

`stage` is the stage; `answer_keys` gives every answer to be sampled its key and its seed, `answer_store` keeps the
answers, `backends/` sample from the models, `given` reads answers that come with a data set, `reasoning` cuts off the
thought before an answer, `flaws` marks answers that must not be trained on, `estimate` is `--dry-run`.
"""
