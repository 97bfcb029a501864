"""What judges answers: builds the scorers that a config names, each of which fulfils `scorer.Scorer`."""

from collections.abc import Iterable

from data_pipeline.config import PipelineConfig
from data_pipeline.domains import RewardModelConfig
from data_pipeline.scoring.scorer import Scorer


def build(
    config: PipelineConfig, domains: Iterable[str], workers: int | None = None
) -> dict[str, tuple[Scorer | None, Scorer | None]]:
    """Domain -> (what gives the reward, what gives the verdict), each None where the config names none.

    Domains with the same reward model share it: it is in memory once.

    Args:
      config: the pipeline's.
      domains: those that have answers.
      workers: processes that verify. Default: `scorers.workers`.

    Raises:
      UserError: an import path leads nowhere, a checkpoint is missing or is no reward model, or programs are to be run
        and no sandbox works here.
    """
    from data_pipeline.scoring import reward_models
    from data_pipeline.scoring.function_scorer import FunctionReward

    models: dict[str, Scorer] = {}
    scorers: dict[str, tuple[Scorer | None, Scorer | None]] = {}
    for name in sorted(set(domains)):
        domain, key = config.domains[name], config.key(name, "reward")
        reward: Scorer | None = None
        if isinstance(domain.reward, RewardModelConfig):
            model = domain.reward.model_dump_json()
            if model not in models:
                models[model] = reward_models.build(domain.reward, key)
            reward = models[model]
        elif domain.reward:
            reward = FunctionReward(domain.reward, key)
        scorers[name] = reward, _verifier(config, name, workers or config.scorers.workers)
    return scorers


def _verifier(config: PipelineConfig, name: str, workers: int | None) -> Scorer | None:
    # Imported only now: an environment that has vLLM for rewards need not have what the verifiers need.
    domain = config.domains[name]
    match domain.verifier:
        case None:
            return None
        case "math_verify":
            from data_pipeline.scoring.math.scorer import MathScorer

            return MathScorer(domain, workers)
        case "code":
            from data_pipeline.scoring.code.scorer import CodeScorer

            return CodeScorer(domain, workers, allow_unsafe=config.scorers.allow_unsafe)
    from data_pipeline.scoring.function_scorer import FunctionVerifier

    return FunctionVerifier(domain.verifier, config.key(name, "verifier"))
