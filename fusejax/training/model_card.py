"""The model card of an export, `README.md`: what the model was made from, how, and with which result.

No names of folders of the machine are in it: an absolute path is cut to its last part.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

UNKNOWN = "unknown"
_ABSOLUTE = re.compile(r"(?<![\w.<>/~\\-])(?:~|file://|gs://[\w.-]+|[A-Za-z]:)?(?:[/\\][\w.@+=%-]+)+[/\\]?")
_TASKS = {"sft": "Supervised fine-tuning", "preference": "Preference optimization", "dpo": "Preference optimization"}


def model_card(
    origin: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    name: str,
    run: str,
    step: int,
    dtype: str,
    versions: Mapping[str, str],
) -> str:
    """The whole card, in Markdown with YAML in front.

    Args:
      origin: see `origin.read_origin`.
      metrics: of the exported step, as the log has them.
      name: of the model.
      run: the run's folder.
      step: the exported one.
      dtype: of the weights.
      versions: of the programs that exported it.
    """
    base, stages = origin["base"], origin["stages"]
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(base, stages), sort_keys=False, allow_unicode=True)}---",
        f"# {last_part(name)}",
        f"{base['name'] or 'A base model that is not known'}, trained with fusejax: {_fusion(stages)}.",
        "## Base model",
        table(["model", "licence"], [[base["name"], base["license"]]]),
        "## Results",
        f"At step {step}, as the training run measured them:" if metrics else "None are known.",
        *([table(["metric", "value"], [[key, f"{value:.6g}"] for key, value in metrics.items()])] if metrics else []),
        "## Training",
        *[text for number, stage in enumerate(stages, start=1) for text in _stage(number, stage)],
        "Exported by",
        "```\npython -m fusejax.export --checkpoint "
        f"{last_part(run)} --output {last_part(name)} --step {step} --dtype {dtype}\n```",
        "with " + ", ".join(f"{package} {version}" for package, version in versions.items()) + ".",
        "## Data",
        *[text for number, stage in enumerate(stages, start=1) for text in _data(number, stage["data"])],
    ]
    return without_paths("\n\n".join(sections) + "\n")


def _fusion(stages: Sequence[Mapping[str, Any]]) -> str:
    implicit = "implicit model fusion, in which one model learns from the judged answers of several others"
    if not any(stage["data"].get("fused") for stage in stages):
        return implicit
    return "explicit model fusion, in which one model learns from what others hold likely at each place of an answer"


def without_paths(text: str) -> str:
    """The text with every absolute path, of a disk or a bucket, cut to its last part.

    >>> without_paths("read from /home/me/data/a.jsonl, see https://huggingface.co/docs")
    'read from a.jsonl, see https://huggingface.co/docs'
    """
    return _ABSOLUTE.sub(lambda found: last_part(found.group()), text)


def _parts(path: str) -> list[str]:
    return re.split(r"[/\\]", path.rstrip("/\\"))


def last_part(path: str) -> str:
    """The last part of a path, of a disk or a bucket."""
    return _parts(path)[-1]


def _front_matter(base: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    hub_ids = sorted({hub_id for stage in stages for hub_id in stage["data"].get("hub_ids") or []})
    tasks = [_task(stage["config"]) for stage in stages]
    values = {
        "license": base["license"],
        "base_model": base["hub_id"],
        "datasets": hub_ids,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fusejax", "model-fusion", *dict.fromkeys(tasks)],
    }
    return {key: value for key, value in values.items() if value}


def _task(config: Mapping[str, Any]) -> str:
    preference = config.get("preference")
    return str(preference["loss"] if isinstance(preference, dict) and "loss" in preference else config.get("task"))


def _stage(number: int, stage: Mapping[str, Any]) -> list[str]:
    config = dict(stage["config"])
    if isinstance(config.get("data"), dict):  # shards are named by two parts, as in sft/train
        config["data"] = {split: path and "/".join(_parts(path)[-2:]) for split, path in config["data"].items()}
    return [
        f"Stage {number}: {_TASKS.get(str(config.get('task')), 'training')} ({_task(config)}), by "
        f"`python -m fusejax.train --config stage{number}.yaml` with this `stage{number}.yaml`:",
        f"```yaml\n{yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}```",
    ]


def _data(number: int, data: Mapping[str, Any]) -> list[str]:
    if not data:
        return [f"Stage {number}: the data are not known; the run was started by a release that did not keep this."]
    licenses, models = data.get("licenses") or {}, data.get("models") or {}
    found = [f"Stage {number}: {data.get('examples')} examples of these data sets:"]
    whole = dict.fromkeys(data.get("by_dataset") or {}, data.get("license"))  # as the data card names it
    found += [_counts("data set", data.get("by_dataset"), whole | licenses)]
    sources = {
        name: f"{name} ({models[name]})" if name in models else name for name in data.get("by_source_model") or {}
    }
    found += ["Whose answers they are:", _counts("source", data.get("by_source_model"), licenses, sources)]
    if fused := data.get("fused"):
        found += ["Whose distributions over these answers were learnt:", table(["source", "model"], fused.items())]
    if likelihoods := data.get("likelihoods"):
        found += ["Whose likelihoods of these answers were compared:", table(["source", "model"], likelihoods.items())]
    if data.get("card"):
        found += [f"### Data card of stage {number}", _demoted(data["card"])]
    return found


def _counts(
    what: str,
    counts: Mapping[str, int] | None,
    licenses: Mapping[str, Any],
    titles: Mapping[str, str] | None = None,
) -> str:
    rows = [[(titles or {}).get(name, name), count, licenses.get(name)] for name, count in (counts or {}).items()]
    return table([what, "examples", "licence"], rows)


def _demoted(card: str) -> str:
    """A card as part of another: without what is in front, its headings further down."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    return re.sub(r"^#", "####", body, flags=re.MULTILINE).strip()


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; None is shown as unknown."""

    def line(cells: Sequence[Any]) -> str:
        shown = (UNKNOWN if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in shown) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])
