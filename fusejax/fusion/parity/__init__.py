"""What the public code of FuseLLM and FuseChat does instead, to compare with: tests and benchmarks alone import it.

`fusellm` is FuseLLM (Wan et al. 2024, arXiv:2401.10491), `fusechat1` and `fusechat2` the two versions of FuseChat
(arXiv:2402.16107, arXiv:2408.07990). All three compare strings: tokens as the vocabularies spell them, in which a
marker ("Ġ" or "▁") is a space. docs/explicit-fusion.md tells what goes wrong, and the tests show it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

System = Literal["fusellm", "fusechat1", "fusechat2"]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens by id, and its marker of a space."""

    names: Sequence[str]
    marker: str

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def plain(self, token: int) -> str:
        """The token without markers."""
        return self.names[token].replace(self.marker, "")

    def exchanged(self, token: int, other: "Vocabulary") -> str:
        """The token with another vocabulary's marker."""
        return self.names[token].replace(self.marker, other.marker)
