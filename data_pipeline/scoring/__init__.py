"""Stage `score`.

Reads   `prompts.parquet`, `samples/*.parquet`
Writes  `scores/{source}.parquet`: the samples with reward and verdict

`stage` is the stage; `scorers` builds what judges: `armorm/` and `classifier/` (reward models, of which `reward_models`
chooses), `math/` and `code/` (verifiers), `function_scorer` (a function of the user's). Programs run in `sandbox/`.
"""
