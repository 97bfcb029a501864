"""Stage `prompts`.

Reads   data sets: files, folders, Hub ids
Writes  `prompts.parquet`, `prompts_funnel.json`, `rejected/prompts.jsonl`

`stage` is the stage; `reading` and `row_files` find rows, `adapters/` know the columns of public data sets, `overlap`
finds near copies and what evaluation sets hold.
"""
