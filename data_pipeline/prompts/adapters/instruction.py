"""Instruction following: prompts that ask for neither code nor mathematics."""

import re
from typing import Any

from data_pipeline.prompts.adapters.base import Adapter, Rejected, Row, text
from data_pipeline.prompts.adapters.topics import refuse_code_and_math

_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def _ultrafeedback(row: Row) -> dict[str, Any]:
    prompt = text(row, "instruction")
    refuse_code_and_math(prompt)
    return {"prompt": prompt}


ULTRAFEEDBACK = Adapter(("instruction",), _ultrafeedback)
"""openbmb/UltraFeedback: {source, instruction, models, completions: [...], correct_answers, incorrect_answers}.

`source` (evol_instruct, sharegpt, flan_v2_cot, ...) is no topic: each of them mixes several. Schema: the data set's
card, section "Dataset Format".
"""


def refuse_labelled(category: Any) -> None:
    """Raises `Rejected` for the categories of code and mathematics among Magpie's `task_category`."""
    if category == "Coding & Debugging":
        raise Rejected("topic_code", category)
    if category == "Math":
        raise Rejected("topic_math", category)


def _magpie_pro_dpo(row: Row) -> dict[str, Any]:
    refuse_labelled(row.get("task_category"))
    return {"id": row.get("uuid"), "prompt": text(row, "instruction")}


MAGPIE_PRO_DPO = Adapter(("uuid", "instruction", "task_category"), _magpie_pro_dpo)
"""Magpie-Align/Magpie-Pro-DPO-100K-v0.1: {uuid, instruction, gen_input_configs, intent, knowledge, difficulty,
input_quality, quality_explanation, task_category, input_length, responses, gen_response_configs, rewards_armorm,
chosen, rejected}.

Schema: `dataset_info` of the card of its translation youjunhyeok/Magpie-Pro-DPO-100K-v0.1-ko. The categories, which
Llama-3 gave, are those of Magpie's own tagging prompt: Information seeking, Reasoning, Planning, Editing, Coding &
Debugging, Math, Role playing, Data analysis, Creative writing, Advice seeking, Brainstorming, Others.
"""


def helpsteer_messages(prompt: str) -> list[dict[str, str]]:
    """The turns of a HelpSteer2 prompt: each turn after the first begins with a line `<extra_id_1>ROLE`.

    >>> helpsteer_messages("Hi\\n<extra_id_1>Assistant\\nHello!\\n<extra_id_1>User\\nWho are you?")[1:]
    [{'role': 'assistant', 'content': 'Hello!'}, {'role': 'user', 'content': 'Who are you?'}]
    """
    first, *rest = _TURN.split(prompt)
    turns = [("user", first), *zip((role.lower() for role in rest[::2]), rest[1::2], strict=True)]
    return [{"role": role, "content": content.strip()} for role, content in turns]


def _helpsteer2(row: Row) -> dict[str, Any]:
    messages = helpsteer_messages(text(row, "prompt"))
    for message in messages:
        if message["role"] == "user":
            refuse_code_and_math(message["content"])
    return {"messages": messages}


HELPSTEER2 = Adapter(("prompt",), _helpsteer2)
"""nvidia/HelpSteer2: {prompt, response, helpfulness, correctness, coherence, complexity, verbosity}, two rows a prompt.

Schema, and the markers of multi-turn prompts: the data set's card, `dataset_info` and section "Dataset Description".
"""
