"""Stage `likelihoods`: how likely every source finds both answers of every pair, for the loss `infifpo`.

Reads   `dpo/{train,eval}-*`; source models
Writes  `likelihoods/{source}/{train,eval}.parquet` with a `manifest.json`,
        `rejected/likelihoods-{source}-{split}.jsonl`

`stage` is the stage. Sources are read as by the stage `distributions`, whose section of the configuration it takes.
"""
