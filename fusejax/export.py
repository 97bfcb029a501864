"""`python -m fusejax.export --checkpoint DIR --output DIR [--step N]`: a trained model for transformers and vLLM.

Both directories may be in `gs://`. Any machine will do, also while the run goes on. On the hosts of a TPU pod the
command may run on all, of which the first does it; or on one alone with JAX_PLATFORMS=cpu.
"""

import argparse

from fusejax.common.cli import UserError, add_host_options, location, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fusejax.export", description="Exports to Hugging Face format.")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the output_dir of a training run")
    parser.add_argument("--output", required=True, metavar="DIR", help="the directory to make")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the best of those kept)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the tensors written")
    add_host_options(parser)
    arguments = parser.parse_args()
    try:
        location(arguments.checkpoint)
        location(arguments.output)
    except ValueError as error:
        raise UserError(str(error)) from None
    import jax

    from fusejax.distributed.hosts import join
    from fusejax.training.export import export

    jax.config.update("jax_platforms", "cpu")  # nothing is computed; accelerators stay free for a run
    with join(arguments.coordinator, arguments.num_hosts, arguments.host_index) as hosts:
        export(arguments.checkpoint, arguments.output, step=arguments.step, dtype=arguments.dtype, hosts=hosts)
        hosts.note(f"exported to {arguments.output}")


if __name__ == "__main__":
    run(main)
