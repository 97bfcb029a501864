# PYTHON_ARGCOMPLETE_OK
"""`python -m data_pipeline STAGE --config FILE [key.path=value ...]`: from prompts to the shards that trainers read."""

import argparse
import importlib
import os
import sys

from data_pipeline.config import PipelineConfig
from data_pipeline.domains import todays_key
from data_pipeline.importing import command
from fusejax.common import cli

STAGES = {
    "prompts": "prompts",
    "sample": "sampling",
    "score": "scoring",
    "select": "selection",
    "write": "shards",
    "report": "report",
}
"""Name of a stage -> its folder, in order."""
DISTRIBUTIONS = "distributions"
"""The stage for explicit fusion, behind all of these; a run has it only if the configuration has that section."""
BENCHMARK = "benchmark"
"""The command that scores models in public benchmarks."""
LIKELIHOODS = "likelihoods"
"""The stage for preferences with several models for a reference; no part of a run."""
IMPORT = "import"
"""The command that makes shards without any of these stages."""
SUMMARIES = {
    "prompts": "read, check and deduplicate the prompts",
    "sample": "ask the source models for answers",
    "score": "judge the answers: rewards and verdicts",
    "select": "choose the best answers, and pairs of a better and a worse one",
    "write": "write the shards that `fusejax train` reads",
    "report": "tell what became of every prompt and answer, as a page and a data card",
    DISTRIBUTIONS: "keep what every source would have said at each place of the chosen answers",
    LIKELIHOODS: "keep how likely every source finds both answers of every pair",
    "run": "all of them in order; distributions only where the configuration has that section",
    IMPORT: "make shards of conversations and pairs that are there already",
    BENCHMARK: "score models in the public benchmarks, beside the published numbers",
}
EXAMPLE = """\
`{program} STAGE --help` tells what a stage reads and writes, all in output_dir. A stage that is done is not done again.
exit status: 0 done, 2 a mistake of yours, told in one line, 130 interrupted: the same command goes on."""
STAGE_EXAMPLE = """\
example:
  {program} --config configs/fusechat3/data.yaml"""
BENCHMARK_EXAMPLE = """\
example:
  {program} --config configs/fusechat3/benchmarks.yaml --only gsm8k,humaneval"""


def main(arguments: list[str]) -> None:
    program = "python -m data_pipeline"
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(make_parser(program))
    if not arguments or arguments[0] not in SUMMARIES:
        make_parser(program).parse_args(arguments)
        return
    stage = arguments[0]
    example = {IMPORT: command.EXAMPLE, BENCHMARK: BENCHMARK_EXAMPLE}.get(stage, STAGE_EXAMPLE)
    parser = cli.command_parser(f"{program} {stage}", _description(stage), example)
    _add_options(parser, stage)
    options = parser.parse_intermixed_args(arguments[1:])
    if stage == IMPORT:
        loaded = command.load(options)
        importlib.import_module("data_pipeline.importing.stage").run(loaded)
        return
    if stage == BENCHMARK:
        _benchmark(options)
        return
    unsafe = ["scorers.allow_unsafe=true"] if getattr(options, "allow_unsafe", False) else []
    overrides = [*options.overrides, *unsafe]
    config = cli.load_config(PipelineConfig, options.config, overrides, rename=todays_key, named=["rule"])
    if getattr(options, "dry_run", False):
        importlib.import_module("data_pipeline.sampling.estimate").run(config)
        return
    if stage == "run":
        from data_pipeline.distributions import stage as distributions
        from data_pipeline.sampling import stage as sample
        from data_pipeline.scoring import scorers
        from data_pipeline.selection import stage as select

        # Checked before hours of sampling, not after.
        domains = {entry.domain for entry in config.prompts}
        select.require_judges(config, domains)
        scorers.build(config, domains)
        sample.locate(config)
        if config.distributions is not None:
            distributions.locate(config)
    everything = [*STAGES, DISTRIBUTIONS] if config.distributions is not None else [*STAGES]
    for name in everything if stage == "run" else [stage]:
        # Imported only now: vLLM's environment lacks some of the packages that the other stages need.
        importlib.import_module(f"data_pipeline.{_folder(name)}.stage").run(config)


def _benchmark(options: argparse.Namespace) -> None:
    from data_pipeline.benchmarks.config import BenchmarkConfig

    unsafe = ["allow_unsafe=true"] if options.allow_unsafe else []
    config = cli.load_config(BenchmarkConfig, options.config, [*options.overrides, *unsafe])
    if options.only:
        config = config.only(options.only.split(","))
    step = "estimate" if options.dry_run else "stage"
    importlib.import_module(f"data_pipeline.benchmarks.{step}").run(config)


def make_parser(program: str) -> argparse.ArgumentParser:
    """All stages with their options, for the list of stages and for completion."""
    parser = cli.command_parser(program, "Makes the data that fusejax trains on, stage by stage.", EXAMPLE)
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, summary in SUMMARIES.items():
        _add_options(stages.add_parser(name, help=summary), name)
    return parser


def _add_options(parser: argparse.ArgumentParser, stage: str) -> None:
    if stage == IMPORT:
        command.add_options(parser)
        return
    if stage == BENCHMARK:
        from data_pipeline.benchmarks.config import BenchmarkConfig

        cli.add_config_options(parser, BenchmarkConfig)
        parser.add_argument("--only", metavar="NAME,...", help="only these of the configured benchmarks")
    else:
        cli.add_config_options(parser, PipelineConfig)
    if stage in ("sample", BENCHMARK):
        parser.add_argument("--dry-run", action="store_true", help="only tell what will be asked, what it will take")
    if stage in ("score", "run", BENCHMARK):
        parser.add_argument("--allow-unsafe", action="store_true", help="run programs even where no sandbox holds")


def _description(stage: str) -> str:
    """What a stage does, and which files it reads and writes according to its folder's docstring."""
    summary = SUMMARIES[stage]
    text = f"{summary[0].upper()}{summary[1:]}."
    if stage == "run":
        return f"{text} {', '.join([*STAGES, DISTRIBUTIONS])}: each goes on where an earlier attempt ended."
    files = importlib.import_module(f"data_pipeline.{_folder(stage)}").__doc__ or ""
    return "\n\n".join([text, *files.split("\n\n")[1:2]])


def _folder(stage: str) -> str:
    return (
        STAGES | {name: name for name in (DISTRIBUTIONS, LIKELIHOODS)} | {IMPORT: "importing", BENCHMARK: "benchmarks"}
    )[stage]


def _run() -> None:
    try:
        cli.run(lambda: main(sys.argv[1:]))
        status = 0
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        status = end.code
    if "vllm" in sys.modules:
        # Now and then, it aborts while Python is torn down, though its engine has ended.
        cli.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    _run()
