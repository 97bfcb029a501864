"""The losses on pairs and triples of answers: each file of this folder is one, named as `preference.loss` names it.

The file defines one subclass of `PairLoss`. Its fields are then keys of the section `preference`; whether there is a
reference pass, and reference values in batches and plans, follows from its `needs_reference`, and what it is trained on
from its `kind`. No other code names a loss. JAX is imported only when a loss is asked for, so that other configurations
are checked without it.
"""

import abc
import importlib
import pkgutil
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import NonNegativeFloat

from fusejax.common.cli import ConfigModel, Location
from fusejax.data.records import Kind

if TYPE_CHECKING:
    from jax import Array

    from fusejax.objectives.preference import PairLosses, Pairs

LOSSES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The names of all losses."""


Fusion = Literal["max_margin", "mean", "confidence"]


class FusedReference(NamedTuple):
    """Source models that are a part of the reference; see `fusejax.training.likelihoods`."""

    sources: tuple[str, ...]
    """Folders that the data pipeline's stage `likelihoods` has written."""
    fusion: Fusion


class PairLoss(ConfigModel, abc.ABC):
    """A loss with its parameters: the section `preference` of a configuration.

    A subclass gives `loss` its name as the default, adds its parameters as fields, and computes the loss in `__call__`.
    """

    needs_reference: ClassVar[bool]
    """Whether `Pairs` must have the log-probabilities of the starting model."""
    kind: ClassVar[Kind] = "dpo"
    """The records that it is a loss of: pairs (`dpo`), or triples (`wrpo`)."""

    loss: str
    """Name of the loss: a file of `fusejax/objectives/losses/`."""
    reference: Location | None = None
    """Sidecar of the reference pass, read if it exists, else written. Default: `OUTPUT_DIR/reference.npz`. Runs that
    start from the same model on the same data can share one."""

    @classmethod
    def variants(cls) -> list[type[ConfigModel]]:
        return [find_loss(name) for name in LOSSES] if cls is PairLoss else []

    sft_weight: NonNegativeFloat = 0.0
    """Factor of the mean negative log-likelihood of a chosen response's tokens, which is added to the loss (RPO). Of
    triples, the source's and the target's response have the shares that they have in the loss."""

    @property
    def needs_progress(self) -> bool:
        """Whether `Pairs` must say how far the run is."""
        return False

    @property
    def fused_reference(self) -> FusedReference | None:
        """Sources, if `Pairs` must have the bounds of a reference that is fused from them."""
        return None

    def source_share(self, pairs: "Pairs") -> "Array | float":
        """Of triples, the share of the source's response in what is chosen; the target's has the rest."""
        return 0.0

    @abc.abstractmethod
    def __call__(self, pairs: "Pairs") -> "PairLosses":
        """The loss and the rewards of each example. Empty slots of a row have length 0, and must not give NaN."""


def find_loss(name: str) -> type[PairLoss]:
    """The class that the file of this name, one of `LOSSES`, defines."""
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, PairLoss) and each.__module__ == module.__name__
    )
    return found
