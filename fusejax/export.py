"""`fusejax export --checkpoint DIR --output DIR [--step N]`: a trained model for transformers and vLLM.

Both directories may be in `gs://`. The command runs on any machine, also while the run goes on. On a TPU pod, start
it on all hosts, of which the first does the work, or on a single host with JAX_PLATFORMS=cpu.
"""

import argparse

from fusejax.common.cli import UserError, add_host_options, command_parser, location, run

DESCRIPTION = """\
Exports a trained model to Hugging Face format, for transformers and vLLM.

Reads   a checkpoint of a training run, which may still be going on
Writes  --output: weights in safetensors, config.json, the tokenizer, a model card; whole or not at all"""

EXAMPLE = """\
example:
  {program} --checkpoint runs/fusechat3/llama3.1-8b-dpo --output llama3.1-8b-fused"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the output_dir of a training run")
    parser.add_argument("--output", required=True, metavar="DIR", help="the directory to make")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the best of those kept)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the tensors written")
    add_host_options(parser)


def main(arguments: list[str] | None = None, program: str = "python -m fusejax.export") -> None:
    parser = command_parser(program, DESCRIPTION, EXAMPLE)
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        location(options.checkpoint)
        location(options.output)
    except ValueError as error:
        raise UserError(str(error)) from None
    import jax

    from fusejax.distributed.hosts import join
    from fusejax.training.export import export

    jax.config.update("jax_platforms", "cpu")  # nothing is computed; accelerators stay free for a run
    with join(options.coordinator, options.num_hosts, options.host_index) as hosts:
        export(options.checkpoint, options.output, step=options.step, dtype=options.dtype, hosts=hosts)
        hosts.note(f"exported to {options.output}")


if __name__ == "__main__":
    run(main)
