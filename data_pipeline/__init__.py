"""From prompts to preference shards: ask the source models, judge their answers, keep the best. Never imports JAX.

Stages, each a module with `run(config)`, each resumable and idempotent, joined by Parquet files under `output_dir`:

    prompts    prompts.parquet              read and checked prompts              rejected/prompts.jsonl
               prompts_funnel.json          how many were read, dropped and kept
    sample     samples/{source}.parquet     every answer of every source
    score      scores/{source}.parquet      with reward and verdict
    select     selection/*.parquet          sft, dpo, discarded (prompts), unused (answers)
    write      sft/, dpo/                   shards for the trainer, with manifest.json
    report     report.html, data_card.md

    distributions   distributions/{source}/     what every source would have said, for explicit fusion; if configured
"""
