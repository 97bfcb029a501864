"""Real chat templates: mask, prompt and end agree with an independent construction, or the record is refused.

There are two constructions. One renders every prompt with transformers alone, and takes all that follows up to the
first special token. The other is TRL's: some of its templates mark what is trained on.
"""

import datetime
import re

import numpy as np
import pytest
from transformers.utils import chat_template_utils

from fusejax.common.chat_template import DEFAULT_DATE, encode_prompt
from fusejax.data.chat import ChatError, encode_conversation
from tests.real.chat_templates import read, tokenizer_for

SYSTEM = {"role": "system", "content": "In French."}
ONE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
TWO = [*ONE, {"role": "user", "content": "Again"}, {"role": "assistant", "content": "Well."}]
THOUGHT = [ONE[0], {"role": "assistant", "content": "<think>\nI think.\n</think>\n\nHello."}]
CONVERSATIONS = {
    "one": ONE,
    "one, system": [SYSTEM, *ONE],
    "two": TWO,
    "two, system": [SYSTEM, *TWO],
    "thought": THOUGHT,
}

# fmt: off
REFUSED_OR_CHANGED: dict[str, dict[str, str]] = {
    "axolotl/deepseek_v3": {"thought": "shortened"},
    "axolotl/exaone4": {"thought": "shortened"},
    "axolotl/gemma": {"one, system": "folded", "two, system": "folded"},
    "axolotl/gemma4": {"all": "prompt_differs"},
    "axolotl/gemma4_unified": {"all": "prompt_differs"},
    "axolotl/llava": {"all": "no_mask"},
    "axolotl/metharme": {"two": "no_mask", "two, system": "no_mask"},
    "axolotl/mistral_v2v3": {"one, system": "folded", "two, system": "prompt_differs"},
    "axolotl/mistral_v3_tekken": {"one, system": "folded", "two, system": "prompt_differs"},
    "axolotl/pixtral": {"one, system": "folded", "two, system": "prompt_differs"},
    "axolotl/qwen3": {"two": "prompt_differs", "two, system": "prompt_differs", "thought": "prompt_differs"},
    "axolotl/qwen3_5": {"two": "prompt_differs", "two, system": "prompt_differs", "thought": "prompt_differs"},
    "llama.cpp/Apertus-8B-Instruct": {"all": "no_mask"},
    "llama.cpp/Apriel-1.6-15b-Thinker-fixed": {"all": "prompt_differs"},
    "llama.cpp/Bielik-11B-v3.0-Instruct": {"thought": "no_mask"},
    "llama.cpp/Cohere2MoE": {"all": "prompt_differs"},
    "llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use": {"all": "template_error"},
    "llama.cpp/CohereForAI-c4ai-command-r7b-12-2024-tool_use": {"all": "prompt_differs"},
    "llama.cpp/GLM-4.6": {"all": "no_mask"},
    "llama.cpp/GLM-4.7-Flash": {"all": "prompt_differs", "thought": "no_mask"},
    "llama.cpp/MiniMax-M2": {"all": "prompt_differs", "thought": ""},
    "llama.cpp/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": {"all": "prompt_differs", "thought": ""},
    "llama.cpp/NVIDIA-Nemotron-Nano-v2": {"two": "prompt_differs", "two, system": "prompt_differs"},
    "llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": {"all": "template_error"},
    "llama.cpp/NousResearch-Hermes-3-Llama-3.1-8B-tool_use": {"all": "template_error"},
    "llama.cpp/Qwen-QwQ-32B": {"all": "prompt_differs"},
    "llama.cpp/Qwen3.5-4B": {"two": "prompt_differs", "two, system": "prompt_differs"},
    "llama.cpp/Reka-Edge": {"thought": "shortened"},
    "llama.cpp/Spark2.5": {"all": "prompt_differs"},
    "llama.cpp/StepFun3.5-Flash": {"two": "prompt_differs", "two, system": "prompt_differs", "thought": "no_mask"},
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B": {"all": "prompt_differs"},
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": {"all": "prompt_differs"},
    "llama.cpp/deepseek-ai-DeepSeek-V3.1": {"thought": "shortened"},
    "llama.cpp/deepseek-ai-DeepSeek-V3.2": {"all": "prompt_differs"},
    "llama.cpp/fireworks-ai-llama-3-firefunction-v2": {"all": "template_error"},
    "llama.cpp/google-gemma-2-2b-it": {"one, system": "folded", "two, system": "folded"},
    "llama.cpp/google-gemma-4-31B-it-interleaved": {"all": "prompt_differs"},
    "llama.cpp/google-gemma-4-31B-it": {"all": "prompt_differs"},
    "llama.cpp/inclusionai-ling-3.0-flash": {"thought": "no_mask"},
    "llama.cpp/llama-cpp-deepseek-r1": {"all": "prompt_differs"},
    "llama.cpp/llama-cpp-rwkv-world": {"all": "no_mask"},
    "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407": {"one, system": "folded", "two, system": "prompt_differs"},
    "llama.cpp/openai-gpt-oss-120b": {"two": "no_mask", "two, system": "no_mask"},
    "llama.cpp/poolside-Laguna-XS-2.1": {"thought": "prompt_differs"},
    "llama.cpp/poolside-Laguna-XS.2": {"thought": "prompt_differs"},
    "llama.cpp/tencent-Hy3": {"all": "no_mask"},
    "trl/deepseek_r1_distill": {"all": "prompt_differs"},
    "trl/deepseek_r1_distill_training": {"all": "prompt_differs", "thought": ""},
    "trl/deepseekv3": {"all": "prompt_differs"},
    "trl/deepseekv3_training": {"all": "prompt_differs"},
    "trl/gemma": {"one, system": "folded", "two, system": "folded"},
    "trl/gemma_training": {"one, system": "folded", "two, system": "folded"},
    "trl/glm4moe": {"all": "no_mask"},
    "trl/glm4moe_training": {"thought": "no_mask"},
    "trl/gptoss": {"two": "no_mask", "two, system": "no_mask"},
    "trl/gptoss_training": {"two": "no_mask", "two, system": "no_mask"},
    "trl/idefics3": {"all": "no_mask"},
    "trl/idefics3_training": {"all": "no_mask"},
    "trl/llava_next": {"all": "template_error"},
    "trl/llava_next_training": {"all": "template_error"},
    "trl/nemotron_3_5_lightning": {"all": "prompt_differs", "thought": ""},
    "trl/nemotron_3_5_lightning_training": {"all": "prompt_differs", "thought": ""},
    "trl/nemotron_3_nano": {"all": "prompt_differs", "thought": ""},
    "trl/nemotron_3_nano_training": {"all": "prompt_differs", "thought": ""},
    "trl/nemotron_3_super": {"all": "prompt_differs", "thought": ""},
    "trl/nemotron_3_super_training": {"all": "prompt_differs", "thought": ""},
    "trl/nemotron_3_ultra": {"all": "prompt_differs", "thought": ""},
    "trl/nemotron_3_ultra_training": {"all": "prompt_differs", "thought": ""},
    "trl/qwen3_5_nothink": {"two": "prompt_differs", "two, system": "prompt_differs", "thought": "prompt_differs"},
    "trl/qwen3_5_nothink_training": {"thought": "prompt_differs"},
    "trl/qwen3_5_think": {"two": "prompt_differs", "two, system": "prompt_differs"},
    "trl/qwen3_6": {"two": "prompt_differs", "two, system": "prompt_differs"},
    "trl/smolvlm": {"all": "no_mask"},
    "trl/smolvlm_training": {"all": "no_mask"},
}
# fmt: on
"""Template -> conversation, or `all` others -> the reason why it is refused, or what was changed. Everything else is
trained on as it is."""

STOPS = {"cohere2": "<|END_OF_TURN_TOKEN|>", "Kimi-K3": "<|end_of_msg|>", "phi3": "<|end|>"}
"""Templates that write more than one special token behind an answer -> the one that stops generation."""


@pytest.fixture
def that_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers tells templates the date that we do."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(DEFAULT_DATE.year, DEFAULT_DATE.month, DEFAULT_DATE.day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def expected(name: str, conversation: str) -> str:
    row = REFUSED_OR_CHANGED.get(name, {})
    return row.get(conversation, row.get("all", ""))


def ids(tokenizer, messages, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


def constructed(tokenizer, messages, stops) -> tuple[list[int], list[bool]]:
    """Ids and mask by transformers alone: behind each prompt all up to the end of the turn."""
    tokens = ids(tokenizer, messages)
    mask = [False] * len(tokens)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = ids(tokenizer, messages[:turn], add_generation_prompt=True)
        assert tokens[: len(prompt)] == prompt
        answer = re.sub(r"\s", "", message["content"].split("</think>")[-1])
        end = len(prompt)
        while answer not in re.sub(r"\s", "", tokenizer.decode(tokens[len(prompt) : end])):
            end += 1
        while tokens[end] not in (stops or special):
            end += 1
        mask[len(prompt) : end + 1] = [True] * (end + 1 - len(prompt))
    return tokens, mask


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    found = read()
    assert len(found) > 150 and found.keys() >= REFUSED_OR_CHANGED.keys()
    return found


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("package", ["axolotl", "llama.cpp", "trl"])
def test_a_template_is_trained_as_it_is_asked(package, conversation, templates, that_day):
    names = [name for name in templates if name.startswith(f"{package}/")]
    assert len(names) > 30
    for name in names:
        compare(name, templates[name], conversation)


def compare(name: str, template: str, conversation: str) -> None:
    tokenizer, messages = tokenizer_for(template), CONVERSATIONS[conversation]
    stop = next((stop for model, stop in STOPS.items() if name.split("/")[1].startswith(model)), None)
    stops = [tokenizer.convert_tokens_to_ids(stop)] if stop else []
    wanted = expected(name, conversation)
    try:
        tokens, mask, changes = encode_conversation(tokenizer, messages, stop_ids=stops)
    except ChatError as error:
        assert error.reason == wanted, (name, error)
        assert len(error.detail) > 20 and error.detail.isprintable(), (name, error)
        return
    assert " ".join(sorted(changes)) == wanted, name
    if "folded" in changes:
        system, user, *rest = messages
        messages = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    assert (tokens.tolist(), mask.tolist()) == constructed(tokenizer, messages, stops), name
    # What samplers and evaluation ask with is the prompt of the last answer.
    asked = encode_prompt(tokenizer, CONVERSATIONS[conversation][:-1]).tokens
    assert tokens[: len(asked)].tolist() == asked and mask[len(asked)] and not mask[len(asked) - 1], name


def test_trl_marks_the_same_targets(templates, that_day):
    """But for what the prompt already holds, the line break behind the end of a turn, which nobody generates, and
    Phi-3's end of the text behind that."""
    compared = 0
    for name, template in templates.items():
        if not re.search(r"\{%-? *generation", template):
            continue
        tokenizer = tokenizer_for(template)
        asked = tokenizer.decode(encode_prompt(tokenizer, ONE[:1]).tokens)
        for conversation, messages in CONVERSATIONS.items():
            if expected(name, conversation):
                continue
            stops = [tokenizer.convert_tokens_to_ids("<|END_OF_TURN_TOKEN|>")] if "cohere2" in name else []
            tokens, mask, _ = encode_conversation(tokenizer, messages, stop_ids=stops)
            theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            assert theirs["input_ids"] == tokens.tolist(), name
            marked = np.array(theirs["assistant_masks"], bool)
            assert not (mask & ~marked).any(), name
            for more in np.split(
                tokens[marked & ~mask], np.flatnonzero(np.diff(np.flatnonzero(marked & ~mask)) > 1) + 1
            ):
                assert tokenizer.decode(more).removesuffix("<eos>").strip("\n") in asked, (name, conversation)
            compared += 1
    assert compared > 100
