"""Chat templates spelled out as text, as scripts that know no chat template write them: no date, no default system
turn. The turns' text is not escaped: a special token in a question is one."""

from collections.abc import Sequence

from data_pipeline.benchmarks.benchmark import Family, Profile, Prompt, Turn

QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
"""The system turn that Qwen's chat template writes where there is none."""


def raw(family: Family, turns: Sequence[Turn]) -> Prompt:
    """The turns as the family's models were trained to read them, with BOS twice for Llama (`bos_again`): the text has
    one, and such scripts' tokenizers put another before it. Gemma's they cut off. Qwen has none.

    >>> raw("qwen", [{"role": "user", "content": "1 + 1?"}]).text
    '<|im_start|>user\\n1 + 1?<|im_end|>\\n<|im_start|>assistant\\n'
    """
    if family == "llama":
        parts = [f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n{turn['content']}<|eot_id|>" for turn in turns]
        opened = "<|start_header_id|>assistant<|end_header_id|>\n\n"
        return Prompt(text=f"<|begin_of_text|>{''.join(parts)}{opened}", bos_again=True)
    if family == "gemma":
        parts = [f"<start_of_turn>{turn['role']}\n{turn['content']}<end_of_turn>\n" for turn in turns]
        return Prompt(text=f"<bos>{''.join(parts)}<start_of_turn>model\n")
    if family == "qwen":
        parts = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns]
        return Prompt(text=f"{''.join(parts)}<|im_start|>assistant\n")
    return Prompt(messages=tuple(turns))


def one_turn(question: str, family: Family, profile: Profile) -> Prompt:
    """A question alone. `clean`: as a message; `fusechat3`: as text, for Qwen with its default system turn, as in
    `prompt.txt` of the FuseChat models in `tatsu-lab/alpaca_eval` cd543a1, models_configs.

    >>> one_turn("Hi", "gemma", "fusechat3").text
    '<bos><start_of_turn>user\\nHi<end_of_turn>\\n<start_of_turn>model\\n'
    """
    turn = {"role": "user", "content": question}
    if profile == "clean":
        return Prompt(messages=(turn,))
    return raw(family, [{"role": "system", "content": QWEN}, turn] if family == "qwen" else [turn])
