"""What judges answers. Each scorer fulfils `base.Scorer`; `build` makes those that a config names."""

from collections.abc import Iterable

from data_pipeline.config import RewardModelConfig, ScorerConfig, ScorersConfig
from data_pipeline.scoring.scorer import Scorer


def build(config: ScorersConfig, domains: Iterable[str]) -> dict[str, tuple[Scorer | None, Scorer | None]]:
    """Domain -> (reward scorer, correctness scorer), each None where the config names none.

    Domains with the same reward model share it: it is in memory once.

    Raises:
      UserError: a reward's import path leads nowhere, there is no such reward model, or programs are to be run and no
        sandbox holds here.
    """
    from data_pipeline.scoring.armorm.scorer import ArmoRMScorer
    from data_pipeline.scoring.function_scorer import ProgrammaticScorer

    models: dict[str, ArmoRMScorer] = {}
    scorers: dict[str, tuple[Scorer | None, Scorer | None]] = {}
    for domain in sorted(set(domains)):
        wanted = getattr(config, domain)
        key = f"scorers.{domain}.reward"
        reward: Scorer | None = None
        if isinstance(wanted.reward, RewardModelConfig):
            model = wanted.reward.model_dump_json()
            if model not in models:
                models[model] = ArmoRMScorer(wanted.reward, key)
            reward = models[model]
        elif wanted.reward:
            reward = ProgrammaticScorer(wanted.reward, key)
        scorers[domain] = reward, _correctness(wanted, config)
    return scorers


def _correctness(wanted: ScorerConfig, config: ScorersConfig) -> Scorer | None:
    # Imported only now: an environment that has vLLM for rewards need not have what the verifiers need.
    match wanted.correctness:
        case "math_verify":
            from data_pipeline.scoring.math.scorer import MathScorer

            return MathScorer(wanted, config.workers)
        case "code":
            from data_pipeline.scoring.code.scorer import CodeScorer

            return CodeScorer(wanted, config.workers, allow_unsafe=config.allow_unsafe)
    return None
