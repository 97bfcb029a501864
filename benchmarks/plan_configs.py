"""Plans every training configuration on its slice, and writes the result into the configuration's comment.

    python benchmarks/plan_configs.py [--check] [configs/fusechat3/llama3.1-8b-sft.yaml ...]

The comment names the slice: `# Fits v5p-16: 18.4 of 102.8 GB a chip (python -m fusejax.plan).` is planned on v5p-16,
and its figures are replaced. With `--check`, nothing is written and a figure that is off ends in exit status 1.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs" / "fusechat3"
COMMENT = re.compile(r"^# Fits (?P<topology>\S+): .* \(python -m fusejax\.plan\)\.$", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    wrong = False
    for file in arguments.configs or sorted(CONFIGS.glob("*-*.yaml")):
        text = file.read_text()
        match = COMMENT.search(text)
        if match is None:
            sys.exit(f"{file}: no comment names a slice to plan it on")
        comment = planned(file, match["topology"])
        print(f"{file.stem:<20} {comment}", flush=True)
        if comment != match[0]:
            wrong = True
            if not arguments.check:
                file.write_text(text.replace(match[0], comment))
    sys.exit(int(wrong and arguments.check))


def planned(file: Path, topology: str) -> str:
    """The comment that belongs into `file`."""
    command = [sys.executable, "-m", "fusejax.plan", "--config", str(file), "--topology", topology, "--json"]
    plan = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    most = max(plan["tasks"].values(), key=lambda task: task["hbm"]["total"])
    if not all(task["fits"] for task in plan["tasks"].values()):
        sys.exit(f"{file}: does not fit {topology}: {most['hbm']}")
    total, limit = (most["hbm"][key] / 1e9 for key in ("total", "limit"))
    return f"# Fits {topology}: {total:.1f} of {limit:.1f} GB a chip (python -m fusejax.plan)."


if __name__ == "__main__":
    main()
