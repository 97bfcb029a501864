"""The reference pass: each response's log-probability under the starting model, computed once, before training.

The result is kept in a small sidecar file, so that only one model is in memory during DPO and a rerun starts at once.
The sidecar names what it was computed from, and a run with other inputs refuses it.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import local_copy, replacing
from fusejax.common.progress import Progress
from fusejax.training.batches import Batches
from fusejax.training.programs import Programs
from fusejax.training.state import Params

_NAMES = ("source", "chosen", "rejected")


@dataclass(frozen=True)
class Reference:
    """Summed log-probabilities in nats: name in the sidecar -> by index into the tokenised data set.

    The names are `chosen` and `rejected`; of triples these are the target's, and `source` comes before them.
    """

    values: dict[str, Float[np.ndarray, "N"]]

    @classmethod
    def empty(cls, size: int, answers: int) -> "Reference":
        """NaN everywhere: an example that the pass missed would make the loss NaN, not slightly wrong."""
        return cls({name: np.full(size, np.nan, np.float32) for name in _NAMES[-answers:]})

    def fill(self, pair_ids: Int[np.ndarray, "R P"], logprobs: Sequence[np.ndarray]) -> None:
        """Takes the values of the examples `pair_ids`, of each answer [R, P]."""
        filled = pair_ids >= 0
        for values, each in zip(self.values.values(), logprobs, strict=True):
            values[pair_ids[filled]] = each[filled]

    def at(self, pair_ids: Int[np.ndarray, "R P"]) -> dict[str, Float[np.ndarray, "R P"]]:
        """The arrays that a microbatch with these examples needs; 0 in empty slots."""
        filled = pair_ids >= 0
        return {
            f"reference_{name}": np.where(filled, values[pair_ids], np.float32(0))
            for name, values in self.values.items()
        }

    def broken(self) -> int:
        """Examples with an answer of no finite log-probability."""
        return int((~np.isfinite(sum(self.values.values()))).sum())


def references(
    path: epath.Path,
    identity: dict[str, str],
    programs: Programs,
    load_params: Callable[[], Params],
    batches: Batches,
    sizes: dict[str, int],
    *,
    answers: int,
) -> dict[str, Reference]:
    """The reference of each split: read from the sidecar at `path`, or else computed and written there.

    Args:
      identity: what it is computed from: fingerprints of model, data and tokenizer, and the length limits.
      programs: of the run.
      load_params: the starting model's parameters; called only if something is computed.
      batches: of the run.
      sizes: pairs or triples in each split.
      answers: of each of them.

    Raises:
      UserError: as `load`; or the model gives a response no finite log-probability.
    """
    if path.exists():
        return load(path, identity)
    params = load_params()
    found = {split: Reference.empty(size, answers) for split, size in sizes.items()}
    for split, reference in found.items():
        with Progress(f"reference, {split}", sizes[split], "example", quiet=jax.process_index() > 0) as progress:
            for rows in batches.once(split):
                pair_ids, logprobs = jax.device_get(programs.reference(params, batches.put(rows)))
                reference.fill(pair_ids, logprobs)
                progress.add(int((pair_ids >= 0).sum()))
        if broken := reference.broken():
            raise UserError(
                f"reference pass: the starting model gives {broken} of {sizes[split]} {split} examples no finite "
                "log-probability; its weights are damaged, or too large for dtype.compute"
            )
    if jax.process_index() == 0:  # all hosts have the same result
        save(path, identity, found)
    return found


def save(path: epath.Path, identity: dict[str, str], found: dict[str, Reference]) -> None:
    arrays = {
        f"{split}.{name}": reference.values[name]
        for name in _NAMES
        for split, reference in found.items()
        if name in reference.values
    }
    with replacing(path) as file:
        np.savez(file, identity=np.array(json.dumps(identity)), **arrays)  # type: ignore[arg-type]  # as in tokens.py


def load(path: epath.Path, identity: dict[str, str]) -> dict[str, Reference]:
    """Reads the sidecar.

    Args:
      identity: what this run would compute it from; see `references`.

    Raises:
      UserError: the file is damaged, or was computed from anything else; the line names what differs.
    """
    try:
        with local_copy(path) as local, np.load(local) as file:
            found = json.loads(str(file["identity"]))
            arrays = {name: file[name] for name in file.files if name != "identity"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: not a reference sidecar, or damaged ({one_line(error)}); delete it to compute it again"
        ) from None
    # The date stands there only where it matters and is not the default, so it may be on one side alone.
    keys = dict.fromkeys([*identity, "chat.date"])
    differing = [key for key in keys if found.get(key) != identity.get(key)]
    if differing:
        raise UserError(
            f"{path}: computed for another {', another '.join(differing)}; "
            "delete it, or set preference.reference to another file"
        )
    return {
        split: Reference({name: arrays[f"{split}.{name}"] for name in _NAMES if f"{split}.{name}" in arrays})
        for split in sorted({name.rpartition(".")[0] for name in arrays})
    }
