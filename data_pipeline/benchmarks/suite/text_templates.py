"""The prompts that FuseChat-3.0's scripts write as text, in place of a chat template: one user turn.

Those of Llama and Gemma have no system turn, Llama's lacks the date header of its chat template, Qwen's has its default
system turn. Published as `prompt.txt` of the FuseChat models in `tatsu-lab/alpaca_eval` cd543a1, models_configs.
"""

from data_pipeline.benchmarks.benchmark import Family, Profile, Prompt

_TEMPLATES: dict[Family, tuple[str, str]] = {
    "llama": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    # The tokenizer that read the scripts' text put <bos> before it.
    "gemma": ("<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    "qwen": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
}


def prompt(instruction: str, family: Family, profile: Profile) -> Prompt:
    """`clean`: messages. `fusechat3`: the text, for Llama with BOS twice; messages for families without one.

    >>> prompt("Hi", "gemma", "fusechat3").text
    '<bos><start_of_turn>user\\nHi<end_of_turn>\\n<start_of_turn>model\\n'
    """
    if profile == "clean" or family not in _TEMPLATES:
        return Prompt(messages=({"role": "user", "content": instruction},))
    before, after = _TEMPLATES[family]
    return Prompt(text=before + instruction + after, bos_again=family == "llama")
