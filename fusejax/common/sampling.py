"""How the tokens of an answer are chosen, for every program that generates."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling."""
    top_k: int | None = None
    """Most tokens to choose from; None for all, and behind a chat server for its default."""
    min_p: float | None = None
    """Least probability, as a share of the likeliest token's; None for none, behind a chat server for its default."""
    repetition_penalty: float = 1.0
    """On tokens of prompt and answer, as in transformers and vLLM: 1 is none."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token of the answer so far, as in OpenAI's API."""
    frequency_penalty: float = 0.0
    """The same, for each time that it occurs."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are no part of it."""
