"""Stage `select`.

Reads   `prompts.parquet`, `scores/*.parquet`
Writes  `selection/{sft,dpo,wrpo,discarded,unused}.parquet`

`stage` is the stage; `rules` are the rules, as pure functions on tables; `hashing` is every random choice they make.
"""
