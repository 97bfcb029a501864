"""`python -m fusejax.evaluate --config FILE [key.path=value ...]`: accuracy of models on held-out prompts."""

from fusejax.common.cli import config_parser, load_config, run
from fusejax.config import EvaluateConfig


def main() -> None:
    arguments = config_parser("fusejax.evaluate", "Evaluates models on held-out prompts.").parse_args()
    config = load_config(EvaluateConfig, arguments.config, arguments.overrides)
    from fusejax.evaluation.evaluate import evaluate
    from fusejax.evaluation.results import table

    print(table(*evaluate(config)))


if __name__ == "__main__":
    run(main)
