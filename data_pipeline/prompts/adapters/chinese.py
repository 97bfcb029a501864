"""Chinese: prompts that ask for neither code nor mathematics."""

import re
from typing import Any

from data_pipeline.prompts.adapters.base import Adapter, Rejected, Row, text
from data_pipeline.prompts.adapters.instruction import refuse_labelled
from data_pipeline.prompts.adapters.topics import refuse_code_and_math

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
GOOD = ("good", "excellent")


def _refuse_other_languages(prompt: str) -> None:
    if not _HAN.search(prompt):
        raise Rejected("not_chinese")


def _alpaca_gpt4_zh(row: Row) -> dict[str, Any]:
    prompt = text(row, "instruction")
    if isinstance(row.get("input"), str) and row["input"].strip():
        prompt = f"{prompt}\n\n{row['input'].strip()}"
    _refuse_other_languages(prompt)
    refuse_code_and_math(prompt)
    return {"prompt": prompt}


ALPACA_GPT4_ZH = Adapter(("instruction", "input"), _alpaca_gpt4_zh)
"""llamafactory/alpaca_gpt4_zh: {instruction, input, output}, as in Alpaca: the input follows the instruction.

Schema: the data set's card, and LLaMA-Factory's `data/README.md`, alpaca format.
"""


def _magpie_qwen2_chinese(row: Row) -> dict[str, Any]:
    refuse_labelled(row.get("task_category"))
    prompt = text(row, "instruction")
    _refuse_other_languages(prompt)
    if row.get("input_quality") not in GOOD:
        raise Rejected("low_quality", str(row.get("input_quality")))
    return {"id": row.get("uuid"), "prompt": prompt}


MAGPIE_QWEN2_CHINESE = Adapter(("uuid", "instruction", "task_category", "input_quality"), _magpie_qwen2_chinese)
"""Magpie-Align/Magpie-Qwen2-Pro-200K-Chinese: {uuid, model, gen_input_configs, instruction, response, conversations,
task_category, other_task_category, task_category_generator, difficulty, intent, knowledge, difficulty_generator,
input_quality, quality_explanation, quality_generator, llama_guard_2, reward_model, instruct_reward,
min_neighbor_distance, repeat_count, min_similar_uuid, instruction_length, response_length, language}.

Schema: `dataset_info` of the card of Magpie-Align/Magpie-Qwen2-Pro-1M-v0.1, of which it is the Chinese part. The
recipe wants prompts of high quality and does not say how to tell: here `input_quality` (very poor, poor, average, good,
excellent) must be good or better.
"""
