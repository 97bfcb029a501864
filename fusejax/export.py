"""`python -m fusejax.export --checkpoint DIR --output DIR [--step N]`: a trained model for transformers and vLLM."""

import argparse

from fusejax.cli import UserError, local_path, note, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fusejax.export", description="Exports to Hugging Face format.")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the output_dir of a training run")
    parser.add_argument("--output", required=True, metavar="DIR", help="the directory to make")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the best of those kept)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the tensors written")
    arguments = parser.parse_args()
    try:
        local_path(arguments.checkpoint)
        local_path(arguments.output)
    except ValueError as error:
        raise UserError(str(error)) from None
    from fusejax.training.export import export

    export(arguments.checkpoint, arguments.output, step=arguments.step, dtype=arguments.dtype)
    note(f"exported to {arguments.output}")


if __name__ == "__main__":
    run(main)
