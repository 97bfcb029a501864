"""Stage `import`.

Reads   conversations and pairs: files, folders, Hub ids
Writes  `sft/` and `dpo/`: shards `{train,eval}-*` with a `manifest.json`; `data_card.md`, `import_funnel.json`,
        `rejected/import-DATASET.jsonl`

`stage` is the stage; `formats` finds out which columns hold what and makes a row a record, out of the turns that
`turns` reads; `known` has the columns of public data sets; `mixing` draws from several; `card` writes the data card.
"""
