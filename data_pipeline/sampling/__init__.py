"""Stage `sample`.

Reads   `prompts.parquet`; source models, or answers that come with a data set
Writes  `samples/{source}.parquet`, `rejected/sample-{source}.jsonl`; for good, `samples/.answers/{source}/`

`stage` is the stage; `answer_keys` names every answer that is wanted, `answer_store` keeps those that were given,
`backends/` ask the models, `flaws` marks what must not be learned, `estimate` is `--dry-run`.
"""
