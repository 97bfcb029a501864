"""What judges answers. Each scorer fulfils `base.Scorer`; `build` makes those that a domain's config names."""

from data_pipeline.config import ScorersConfig
from data_pipeline.scorers.base import Scorer


def build(config: ScorersConfig, domain: str) -> tuple[Scorer | None, Scorer | None]:
    """The domain's (reward scorer, correctness scorer), each None where the config names none.

    Raises:
      UserError: the reward's import path leads nowhere, or programs are to be run and no sandbox holds here.
    """
    from data_pipeline.scorers.code import CodeScorer
    from data_pipeline.scorers.math import MathScorer
    from data_pipeline.scorers.programmatic import ProgrammaticScorer

    wanted = getattr(config, domain)
    reward = ProgrammaticScorer(wanted.reward, f"scorers.{domain}.reward") if wanted.reward else None
    match wanted.correctness:
        case "math_verify":
            return reward, MathScorer(wanted, config.workers)
        case "code":
            return reward, CodeScorer(wanted, config.workers, allow_unsafe=config.allow_unsafe)
    return reward, None
