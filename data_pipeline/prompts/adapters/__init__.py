"""Public data sets as this pipeline's prompts: one adapter each, by Hub id.

An adapter knows a data set's columns and which rows the recipe leaves out. Local copies of a data set are read with
`adapter: HUB_ID`; other data sets need no adapter: the config names their columns.
"""

from data_pipeline.prompts.adapters import chinese, code, instruction, math
from data_pipeline.prompts.adapters.base import Adapter, Rejected

__all__ = ["ADAPTERS", "Adapter", "Rejected"]

ADAPTERS: dict[str, Adapter] = {
    "openbmb/UltraFeedback": instruction.ULTRAFEEDBACK,
    "Magpie-Align/Magpie-Pro-DPO-100K-v0.1": instruction.MAGPIE_PRO_DPO,
    "nvidia/HelpSteer2": instruction.HELPSTEER2,
    "nvidia/OpenMathInstruct-2": math.OPENMATHINSTRUCT2,
    "openai/gsm8k": math.GSM8K,
    "greengerong/leetcode": code.LEETCODE,
    "bigcode/self-oss-instruct-sc2-exec-filter-50k": code.SELF_OSS_INSTRUCT,
    "newfacade/LeetCodeDataset": code.LEETCODE_DATASET,
    "llamafactory/alpaca_gpt4_zh": chinese.ALPACA_GPT4_ZH,
    "Magpie-Align/Magpie-Qwen2-Pro-200K-Chinese": chinese.MAGPIE_QWEN2_CHINESE,
}
