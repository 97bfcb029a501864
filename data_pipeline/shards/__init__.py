"""Stage `write`.

Reads   `prompts.parquet`, `selection/{sft,dpo,wrpo}.parquet`
Writes  `{sft,dpo,wrpo}/{train,eval}-*` in ArrayRecord or TFRecord, with a `manifest.json` each

`stage` is all of it; the records are `fusejax.data.records`, which the trainer reads.
"""
