"""Public data sets by Hub id: which columns hold what, and which split is meant.

`AALF/ultrafeedback_wrpo` is read as SLIT-AI/WRPO's README shows its rows: `chosen` holds two answers to one prompt,
that of the source models and that of the target, `rejected` one answer of the target. With `kind: dpo` each chosen
answer makes a pair with the rejected one: the pairs whose two DPO losses that repository's baseline (`loss_type:
sigmoid`) averages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusejax.data.records import Kind

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """How the rows of one data set are read."""

    kind: Kind
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the column's, for all that are read."""
    split: str = "train"
    """The split that is meant where none is named."""
    rows: Callable[[Row], Sequence[Row]] = lambda row: [row]
    """The rows that one row stands for."""


def find(name: str, split: str | None, kind: Kind | None = None) -> Known | None:
    """What is known of a data set; of some the split says what it is for, or the kind that is asked for."""
    if name == "AALF/ultrafeedback_wrpo" and kind == "dpo":
        return WRPO_PAIRS
    if name == "HuggingFaceH4/ultrafeedback_binarized" and split is not None and not split.endswith("_prefs"):
        return ULTRAFEEDBACK_SFT
    return KNOWN.get(name)


def pairs(row: Row, name: str = "prompt_id") -> list[Row]:
    """Of a triple one row for each answer in `chosen`, which the column `name`, if there is one, tells apart."""
    chosen = row.get("chosen")
    if not isinstance(chosen, list) or len(chosen) < 2:
        return [row]
    places = ["source", "target", *range(2, len(chosen))]
    return [
        {**row, "chosen": [answer], **({name: f"{row[name]}-{place}"} if name in row else {})}
        for place, answer in zip(places, chosen, strict=False)
    ]


_TURNS = {"chosen": "chosen", "rejected": "rejected"}
_SCORES = {"chosen_score": "score_chosen", "rejected_score": "score_rejected"}
_FUSECHAT = {"dataset": "dataset", "source_model": "source_model"}
_TULU = Known("dpo", {"id": "id", "dataset": "source", **_TURNS})
"""{id, source, prompt, chosen, rejected}; chosen and rejected are whole conversations. Schema: `dataset_info` of the
data sets' cards."""

_WRPO = {"id": "prompt_id", "prompt": "prompt", **_TURNS}
WRPO_PAIRS = Known("dpo", _WRPO, rows=pairs)
ULTRAFEEDBACK_SFT = Known("sft", {"id": "prompt_id", "messages": "messages"}, split="train_sft")
KNOWN: Mapping[str, Known] = {
    # {dataset, source_model, conversations} and {dataset, source_model, prompt, chosen, rejected}.
    "FuseAI/FuseChat-3.0-SFT-Data": Known("sft", {"messages": "conversations", **_FUSECHAT}),
    "FuseAI/FuseChat-3.0-DPO-Data": Known("dpo", {"prompt": "prompt", **_TURNS, **_FUSECHAT}),
    # {prompt, prompt_id, chosen, rejected, messages, score_chosen, score_rejected}; both answers repeat the prompt.
    # Splits {train,test}_{prefs,sft,gen}. Schema: `dataset_info` of the data set's card.
    "HuggingFaceH4/ultrafeedback_binarized": Known(
        "dpo", {"id": "prompt_id", **_TURNS, **_SCORES}, split="train_prefs"
    ),
    # {prompt_id, prompt: a turn, chosen: [a turn, a turn], rejected: [a turn]}.
    "AALF/ultrafeedback_wrpo": Known("wrpo", _WRPO),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": _TULU,
    "allenai/llama-3.1-tulu-3-70b-preference-mixture": _TULU,
    "allenai/llama-3.1-tulu-3-405b-preference-mixture": _TULU,
}
