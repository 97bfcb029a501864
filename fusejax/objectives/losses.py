"""The losses on pairs of answers, by name. Imports no JAX before a loss is asked for: configurations are checked here.

A new loss is a file of this folder with a subclass of `PairLoss`, and its line in `LOSSES`. Its parameters are then
keys of the section `preference`; whether there is a reference pass, and reference values in batches and plans, follows
from its `needs_reference`.
"""

import importlib
from typing import TYPE_CHECKING, ClassVar

from fusejax.common.cli import ConfigModel, Location

if TYPE_CHECKING:
    from fusejax.objectives.preference import PairLosses, Pairs

LOSSES = {
    "dpo": "fusejax.objectives.dpo.DPO",
}
"""`preference.loss` -> the class."""


class PairLoss(ConfigModel):
    """A loss with its parameters: the section `preference` of a configuration.

    A subclass names itself in `loss`, adds its parameters as fields, and computes the loss in `__call__`.
    """

    needs_reference: ClassVar[bool]
    """Whether `Pairs` must have the log-probabilities of the starting model."""

    loss: str
    """Its name in `LOSSES`."""
    reference: Location | None = None
    """Sidecar of the reference pass, read if it exists, else written. Default: `OUTPUT_DIR/reference.npz`. Runs that
    start from the same model on the same data can share one."""

    def __call__(self, pairs: "Pairs") -> "PairLosses":
        """The loss and the rewards of each pair. Empty slots of a row have length 0, and must not give NaN."""
        raise NotImplementedError


def find_loss(name: str) -> type[PairLoss]:
    """The class of a loss in `LOSSES`."""
    module, _, attribute = LOSSES[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
