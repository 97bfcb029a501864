"""The published recipe, as its configurations hold it."""

from pathlib import Path

import pytest
import yaml

from data_pipeline.config import PipelineConfig
from data_pipeline.selection.rules import WRPO, FuseRL, Margin, OneSource, VerdictBoth, VerdictPairs
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.data.packing import num_steps
from fusejax.objectives.losses.dpo import DPO
from fusejax.objectives.losses.wrpo import WRPO as WRPOLoss

CONFIGS = Path(__file__).parent.parent / "configs"

# Target: Hub id, SFT and DPO learning rates, beta, length normalisation (FuseChat-3.0, README and model cards).
TARGETS = {
    "llama3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", 5e-6, 8e-7, 10, True),
    "llama3.2-3b": ("meta-llama/Llama-3.2-3B-Instruct", 5e-6, 1e-6, 10, True),
    "llama3.2-1b": ("meta-llama/Llama-3.2-1B-Instruct", 5e-6, 1e-6, 10, True),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", 2e-6, 3e-7, 0.01, False),
    "gemma2-9b": ("google/gemma-2-9b-it", 2e-6, 5e-7, 0.01, False),
}


@pytest.mark.parametrize("target", TARGETS)
def test_training_figures(target):
    hub_id, sft_rate, dpo_rate, beta, length_normalized = TARGETS[target]
    sft = load_config(TrainConfig, CONFIGS / "fusechat3" / f"{target}-sft.yaml", [])
    dpo = load_config(TrainConfig, CONFIGS / "fusechat3" / f"{target}-dpo.yaml", [])
    assert (sft.task, sft.model, sft.optimizer.learning_rate, sft.epochs) == ("sft", hub_id, sft_rate, 3)
    assert (dpo.task, dpo.model, dpo.optimizer.learning_rate, dpo.epochs) == ("preference", sft.output_dir, dpo_rate, 1)
    assert isinstance(dpo.preference, DPO)
    assert (dpo.preference.beta, dpo.preference.length_normalized) == (beta, length_normalized)
    assert dpo.preference.label_smoothing == 0
    assert (dpo.prompt_limit, dpo.checkpoint.every_steps, dpo.checkpoint.keep) == (1800, 100, 2)
    for run in (sft, dpo):
        assert (run.batch_size, run.max_length) == (128, 2048)
        optimizer = run.optimizer
        assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.weight_decay) == ("adamw", 0.9, 0.999, 0)
        assert (optimizer.schedule, optimizer.warmup_ratio) == ("cosine", 0.1)


def test_steps():
    assert num_steps(94_539, 128, 3) == 2_216
    assert num_steps(64_128, 128, 1) == 501


def test_data_figures():
    data = load_config(PipelineConfig, CONFIGS / "fusechat3" / "data.yaml", [])
    sampling = {source.model: (source.temperature, source.top_p, source.repetition_penalty) for source in data.sources}
    assert sampling == {
        "google/gemma-2-27b-it": (0.8, 0.95, 1.0),
        "mistralai/Mistral-Large-Instruct-2407": (0.8, 0.95, 1.0),
        "Qwen/Qwen2.5-72B-Instruct": (0.7, 0.8, 1.05),
        "meta-llama/Llama-3.1-70B-Instruct": (0.8, 0.95, 1.0),
        "Qwen/Qwen2.5-Math-72B-Instruct": (0.7, 0.8, 1.05),
    }
    assert {name: (domain.samples, domain.verifier) for name, domain in data.domains.items()} == {
        "instruction": (5, None),
        "math": (5, "math_verify"),
        "code": (8, "code"),
        "chinese": (1, None),
    }
    assert {name: domain.rule for name, domain in data.domains.items()} == {
        "instruction": Margin(sft_fraction=0.4, min_margin=0.01, max_margin=0.1),
        "math": VerdictPairs(min_margin=0.01, max_margin=0.1),
        "code": VerdictBoth(same_source=True, min_margin=0.0, max_margin=None),
        "chinese": OneSource(source="Qwen2.5-72B-Instruct"),
    }
    drawn = {entry.path: (entry.domain, entry.limit) for entry in data.prompts}
    assert drawn == {
        "openbmb/UltraFeedback": ("instruction", 51_098),
        "Magpie-Align/Magpie-Pro-DPO-100K-v0.1": ("instruction", 20_374),
        "nvidia/HelpSteer2": ("instruction", 9_435),
        "nvidia/OpenMathInstruct-2": ("math", 51_803),
        "greengerong/leetcode": ("code", None),
        "bigcode/self-oss-instruct-sc2-exec-filter-50k": ("code", None),
        "llamafactory/alpaca_gpt4_zh": ("chinese", 2_471),
        "Magpie-Align/Magpie-Qwen2-Pro-200K-Chinese": ("chinese", 7_481),
    }
    # All but code, which has no limit.
    assert sum(entry.limit or 0 for entry in data.prompts) == 158_667 - 3_113 - 12_892
    assert all(entry.adapter_name == entry.path for entry in data.prompts)
    asked = {source.model: set(source.domains) for source in data.sources}
    assert asked == {
        "google/gemma-2-27b-it": {"instruction", "code"},
        "mistralai/Mistral-Large-Instruct-2407": {"instruction", "code"},
        "Qwen/Qwen2.5-72B-Instruct": {"instruction", "code", "chinese"},
        "meta-llama/Llama-3.1-70B-Instruct": {"instruction", "code"},
        "Qwen/Qwen2.5-Math-72B-Instruct": {"math"},
    }
    assert data.max_new_tokens == 4096


# Hub ids of the sources (WRPO's README).
WRPO_SOURCES = {
    "mistralai/Mistral-Large-Instruct-2407",
    "google/gemma-2-27b-it",
    "Qwen/Qwen2-72B-Instruct",
    "meta-llama/Meta-Llama-3-70B-Instruct",
    "google/gemma-2-9b-it",
    "internlm/internlm2_5-20b-chat",
    "deepseek-ai/DeepSeek-V2-Chat-0628",
    "deepseek-ai/DeepSeek-Coder-V2-Instruct-0724",
    "01-ai/Yi-1.5-34B-Chat",
    "microsoft/Phi-3-medium-4k-instruct",
}


def test_wrpo_training_figures():
    sft = load_config(TrainConfig, CONFIGS / "wrpo" / "llama3-8b-sft.yaml", [])
    assert (sft.task, sft.model, sft.epochs) == ("sft", "meta-llama/Meta-Llama-3-8B-Instruct", 1)
    assert (sft.batch_size, sft.max_length) == (128, 2048)
    optimizer = sft.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 7e-6, 0)
    assert (optimizer.schedule, optimizer.warmup_ratio) == ("cosine", 0.1)
    wrpo = load_config(TrainConfig, CONFIGS / "wrpo" / "llama3-8b-wrpo.yaml", [])
    assert (wrpo.task, wrpo.model, wrpo.epochs) == ("preference", sft.output_dir, 1)
    assert wrpo.preference == WRPOLoss(beta=0.01, alpha=0.1)
    assert (wrpo.batch_size, wrpo.max_length, wrpo.max_prompt_length) == (128, 2048, 1800)
    optimizer = wrpo.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_ratio) == (3e-7, "cosine", 0.1)


@pytest.mark.parametrize("paper", ["fusechat1", "fusechat2"])
def test_fusechat_figures(paper: str):
    config = load_config(TrainConfig, CONFIGS / paper / "openchat-3.5-pairwise.yaml", [])
    assert (config.task, config.model, config.epochs) == ("sft", "openchat/openchat_3.5", 3)
    assert (config.batch_size, config.max_length) == (128, 2048)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 5e-6, 0)
    assert (optimizer.schedule, optimizer.warmup_ratio) == ("cosine", 0.03)
    fusion = config.fusion
    assert fusion is not None
    assert (fusion.clm_weight, fusion.top_k, fusion.choose, fusion.tail) == (0.9, 10, "mince", "renormalize")
    merge = yaml.safe_load((CONFIGS / paper / "merge.yaml").read_text())
    assert merge["pivot"] == config.model and len(merge["targets"]) == {"fusechat1": 2, "fusechat2": 5}[paper]
    data = load_config(PipelineConfig, CONFIGS / paper / "data.yaml", [])
    section = data.distributions
    assert section is not None and data.sources[0].model == config.model
    # Without InternLM2-20B, one of FuseChat-2.0's five, whose tokenizer needs its own program.
    assert len(data.sources) == 1 + {"fusechat1": 2, "fusechat2": 4}[paper]
    assert (section.top_k, section.template, section.target) == (fusion.top_k, "target", config.model)
    assert config.data.train == f"{data.output_dir}/sft/train"
    sidecars = [f"{data.output_dir}/distributions/{source.name}/train" for source in data.sources]
    assert fusion.sidecars[0] == sidecars[0] and fusion.sidecars[1] in sidecars[1:] and len(fusion.sidecars) == 2


def test_wrpo_data_figures():
    first, second, weighted = (
        load_config(PipelineConfig, CONFIGS / name, [])
        for name in ("wrpo/data.yaml", "wrpo/data-round2.yaml", "fuserl/data.yaml")
    )
    for data in (first, second, weighted):
        assert {source.model for source in data.sources[:10]} == WRPO_SOURCES
        assert {(source.temperature, source.top_p) for source in data.sources} == {(0.8, 0.95)}
        domain = data.domains["instruction"]
        assert (domain.samples, domain.reward.model) == (5, "RLHFlow/ArmoRM-Llama3-8B-v0.1")
        assert [entry.path for entry in data.prompts] == ["princeton-nlp/llama3-ultrafeedback-armorm"]
    assert first.domains["instruction"].rule == WRPO(sft_fraction=0.3333)
    assert weighted.domains["instruction"].rule == FuseRL(top=4, temperature=0.01, sft_fraction=0.3333)
    # The second round adds the target to the first, and changes nothing else.
    (target,) = second.sources[10:]
    changed = second.model_dump()
    changed["sources"] = changed["sources"][:10]
    changed["domains"]["instruction"]["rule"]["target"] = None
    assert second.domains["instruction"].rule.target == target.name and changed == first.model_dump()
