"""The model card of a merge, `README.md`: which models were merged, and how, in terms that repeat it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fusejax.training.model_card import last_part, table, without_paths


def merge_card(
    config: Mapping[str, Any],
    pivot: Mapping[str, str | None],
    targets: Sequence[Mapping[str, str | None]],
    *,
    versions: Mapping[str, str],
) -> str:
    """The whole card, in Markdown with YAML in front. No folders of the machine are named in it.

    Args:
      config: of the merge.
      pivot: see `fusejax.training.origin.describe`.
      targets: the same of each.
      versions: of the programs that merged.
    """
    name, method = last_part(config["output"]), config["method"]["name"]
    licenses = list(dict.fromkeys(model["license"] for model in (pivot, *targets)))
    front = {
        "license": licenses[0] if len(licenses) == 1 else None,
        "base_model": list(dict.fromkeys(each["hub_id"] for each in (pivot, *targets) if each["hub_id"])),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fusejax", "model-fusion", "merge", method],
    }
    given = {key: value for key, value in front.items() if value}
    rows = [
        ["pivot", pivot["name"], pivot["license"]],
        *(["target", each["name"], each["license"]] for each in targets),
    ]
    paths = {"pivot": pivot["name"], "targets": [each["name"] for each in targets], "output": name}
    sections = [
        f"---\n{yaml.safe_dump(given, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"{len(targets)} model{'s' * (len(targets) > 1)} trained from {pivot['name']}, merged by fusejax (`{method}`).",
        "## Models",
        table(["role", "model", "licence"], rows),
        "## Merge",
        "`python -m fusejax.merge --config merge.yaml` with this `merge.yaml`:",
        f"```yaml\n{yaml.safe_dump({**config, **paths}, sort_keys=False, allow_unicode=True)}```",
        "with " + ", ".join(f"{package} {version}" for package, version in versions.items()) + ".",
    ]
    return without_paths("\n\n".join(sections) + "\n")
