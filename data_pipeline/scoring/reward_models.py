"""Which kind of reward model a checkpoint is, as its `config.json` says."""

from data_pipeline.domains import RewardModelConfig
from data_pipeline.sampling import checkpoint
from data_pipeline.scoring.armorm import ARCHITECTURE
from data_pipeline.scoring.scorer import Scorer
from fusejax.common.cli import UserError, one_line
from fusejax.common.small_files import read_object


def build(config: RewardModelConfig, key: str) -> Scorer:
    """ArmoRM, or a sequence classifier with one label.

    Args:
      config: the section of the domain.
      key: what the section is called there, for errors.

    Raises:
      UserError: there is no such checkpoint, it is neither of these, or it cannot be run here.
    """
    from data_pipeline.scoring.armorm.scorer import ArmoRMScorer
    from data_pipeline.scoring.classifier.scorer import ClassifierScorer

    try:
        directory = checkpoint.locate(config.model, config.revision)
        values = read_object(directory / "config.json")
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    except OSError as error:
        raise UserError(f"{key}: {config.model}: config.json cannot be read: {one_line(error)}") from None
    if values.get("architectures") == [ARCHITECTURE]:
        return ArmoRMScorer(config, key)
    return ClassifierScorer(config, key, directory, values)
