"""The methods: each file of this folder is one, named as `method.name` names it.

The file defines one subclass of `MergeMethod`. Its fields are then keys of the section `method`. No other code names a
method.
"""

import abc
import importlib
import pkgutil
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from pydantic import PositiveFloat

from fusejax.common.cli import ConfigModel
from fusejax.merging.stack import Chunk, Models, Stack

METHODS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The names of all methods."""

MergeChunk = Callable[[Chunk], Float[np.ndarray, " N"]]
"""From a chunk of a tensor to its merged values."""


class MergeMethod(ConfigModel, abc.ABC):
    """A method with its parameters: the section `method` of a configuration.

    A subclass gives `name` its own name as the default, adds its parameters as fields, and merges in `merge`.
    """

    name: str
    """Name of the method: a file of `fusejax/merging/methods/`. It may stand for the whole section: `method: sce`."""

    @classmethod
    def variants(cls) -> list[type[ConfigModel]]:
        return [find_method(name) for name in METHODS] if cls is MergeMethod else []

    def check(self, targets: int) -> None:
        """Checks the parameters against the number of targets.

        Raises:
          ValueError: they do not fit.
        """

    def weights(self, models: Models) -> Callable[[str], Sequence[float]]:
        """From a tensor's name to the weight of each target, in their order; found before any tensor is merged."""
        return lambda name: [1.0] * models.targets

    @abc.abstractmethod
    def merge(self, stack: Stack) -> MergeChunk:
        """Looks at a whole tensor, as far as the method needs to, and returns what merges a chunk of it.

        Args:
          stack: its `weights` are what the method's own `weights` gave. The order of its targets says nothing.
        """


class WeightedMethod(MergeMethod):
    """A method with one weight, or one for each target."""

    weight: PositiveFloat | list[PositiveFloat]
    """Of every target, or a list with that of each, in their order."""

    def check(self, targets: int) -> None:
        if isinstance(self.weight, list) and len(self.weight) != targets:
            raise ValueError(f"method.weight: {len(self.weight)} weights for {targets} targets")

    def weights(self, models: Models) -> Callable[[str], Sequence[float]]:
        weight = self.weight if isinstance(self.weight, list) else [self.weight] * models.targets
        return lambda name: weight


def column(weights: Sequence[float]) -> Float[np.ndarray, "K 1"]:
    """Weights of targets beside their values."""
    return np.array(weights, np.float32)[:, None]


def find_method(name: str) -> type[MergeMethod]:
    """The class that the file of this name, one of `METHODS`, defines."""
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, MergeMethod) and each.__module__ == module.__name__
    )
    return found
