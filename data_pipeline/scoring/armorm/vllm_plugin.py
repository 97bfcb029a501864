"""Registers ArmoRM with vLLM: the entry point in the group `vllm.general_plugins`, called in each vLLM process."""

from data_pipeline.scoring.armorm import ARCHITECTURE


def register() -> None:
    """Tells vLLM which class runs checkpoints of ArmoRM's architecture; the class is imported when one is loaded."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, "data_pipeline.scoring.armorm.vllm_model:ArmoRM")
