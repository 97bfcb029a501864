"""The example's results as a table."""

from typing import Any

MODELS = {"base": "SmolLM2-135M-Instruct", "sft": "after SFT", "dpo": "after DPO"}


def rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What was measured, and how it came out."""

    def percent(found: tuple[float, float]) -> str:
        return f"{100 * found[0]:.1f} % ± {100 * found[1]:.1f}"

    def nats(found: tuple[float, float]) -> str:
        return f"{found[0]:.4f} ± {found[1]:.4f}"

    prompts, pairs = f"{results['prompts']} held-out prompts", f"{results['pairs']} held-out pairs"
    return [
        *((f"loss of the best answers, {name}", nats(results["loss"][key])) for key, name in MODELS.items()),
        (f"SFT lowers it by (paired, {prompts})", nats(results["loss_fall"]["sft"])),
        (f"DPO's reward accuracy ({pairs})", percent(results["reward_accuracy"])),
        ("... where the chosen answer is the longer one", percent(results["reward_accuracy_chosen_longer"])),
        ("... where it is the shorter one", percent(results["reward_accuracy_chosen_shorter"])),
        ("pairs whose chosen answer is the longer one", percent(results["chosen_longer"])),
        ("chosen answer likelier per token, after SFT", percent(results["likelier"]["sft"])),
        ("chosen answer likelier per token, after DPO", percent(results["likelier"]["dpo"])),
    ]


def table(results: dict[str, Any]) -> str:
    """The table as text, `±` being standard errors."""
    width = max(len(name) for name, _ in rows(results))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows(results))
