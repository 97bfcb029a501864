"""A pod without Google Cloud: the stand-in `gcloud` on PATH, TPU VMs as directories, a trainer that obeys."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

# What the VMs have: their name, a Python that can install uv, and a uv whose environments hold the trainer below.
WORKER_PROGRAMS = {
    "hostname": 'echo "$FAKE_HOST"',
    "python3": """
        [[ "$*" == "-m pip install --quiet --user uv" ]] || exit 2
        mkdir -p ~/.local/bin && cp "$FAKE_GCLOUD/uv" ~/.local/bin""",
}
UV = """
case $1 in
  venv) [[ "$*" == "venv --quiet --python 3.11 $HOME/fusejax-venv" ]] || exit 2
    mkdir -p ~/fusejax-venv/bin && cp "$FAKE_GCLOUD/trainer" ~/fusejax-venv/bin/python ;;
  pip) [[ $* == *"--constraint $HOME/fusejax/constraints.txt --editable $HOME/fusejax[tpu]" ]] || exit 2
    [[ -f ~/fusejax/pyproject.toml && -f ~/fusejax/constraints.txt ]] ;;
esac
"""
# Does in its Nth run what line N of `script.WORKER`, or of `script`, says (the last line for all further runs).
TRAINER = """
echo "$FAKE_HOST: $*" >>"$FAKE_GCLOUD/runs"
script=$FAKE_GCLOUD/script.$FAKE_WORKER; [[ -f $script ]] || script=$FAKE_GCLOUD/script
run=$(grep -c "w$FAKE_WORKER: " "$FAKE_GCLOUD/runs")
echo "run $run in $PWD"
read -r does status <<<"$(head -n "$run" "$script" | tail -n 1)"
trap 'echo "saved on $FAKE_HOST" | tee -a "$FAKE_GCLOUD/saved"; exit 75' TERM
case $does in
  exit) sleep 0.2; echo "last words of $FAKE_HOST"; exit "$status" ;;
  hang) while true; do sleep 0.05; done ;;
  stubborn) trap '' TERM; while true; do sleep 0.05; done ;;
esac
"""


def executable(path: Path, text: str) -> None:
    path.write_text("#!/usr/bin/env bash\n" + text + "\n")
    path.chmod(0o755)


def _answer_signals() -> None:
    # What nohup or a background job ignores, its children ignore too, and bash cannot trap it.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Pod:
    """The stand-in's directory, and `tpu/pod.sh` run against it."""

    root: Path
    repository: Path
    settings: dict[str, str] = field(default_factory=dict)

    def plan(self, **changes: Any) -> None:
        """Changes what the stand-in does: see `fake_gcloud`."""
        path = self.root / "plan.json"
        plan = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(plan | changes))

    def script(self, *runs: str, worker: int | None = None) -> None:
        """What the trainer does run by run: `exit STATUS`, `hang` (saves on SIGTERM) or `stubborn` (ignores it)."""
        (self.root / ("script" if worker is None else f"script.{worker}")).write_text("\n".join(runs) + "\n")

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = os.environ | self.settings | settings
        return subprocess.Popen(
            [str(self.repository / "tpu" / "pod.sh"), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_answer_signals,
        )

    def run(self, *arguments: str, **settings: str) -> tuple[int, str]:
        """Exit status and output, of worker 0's log too."""
        process = self.start(*arguments, **settings)
        try:
            output, _ = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output

    def calls(self, start: str) -> list[str]:
        path = self.root / "calls"
        return [call for call in path.read_text().splitlines() if call.startswith(start)] if path.exists() else []

    def runs(self) -> list[str]:
        """`HOST: ARGUMENTS` of every run of the trainer."""
        path = self.root / "runs"
        return path.read_text().splitlines() if path.exists() else []

    def resource(self) -> dict[str, Any] | None:
        return json.loads((self.root / "state.json").read_text())["resource"]

    def groups(self) -> list[int]:
        return [int(path.read_text()) for path in self.root.glob("workers/*/*/fusejax-run/group")]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit with what pod.sh sends to the workers."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(REPOSITORY / "tpu", root / "tpu")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, root)
    (root / "configs").mkdir()
    for config in ("configs/run.yaml", "a.yaml", "b.yaml"):
        (root / config).touch()
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "all"], check=True)
    return root


@pytest.fixture
def pod(tmp_path: Path, repository: Path) -> Iterator[Pod]:
    """Two workers, and a trainer that ends well."""
    root = tmp_path / "cloud"
    (root / "bin").mkdir(parents=True)
    (root / "worker_bin").mkdir()
    # An import, so that it is compiled once, and without site-packages: pod.sh calls gcloud often.
    program = f"import sys; sys.path.append({str(HERE)!r}); import fake_gcloud; fake_gcloud.main()"
    executable(root / "bin" / "gcloud", f'exec {sys.executable} -IS -c {shlex.quote(program)} "$@"')
    for name, text in WORKER_PROGRAMS.items():
        executable(root / "worker_bin" / name, text)
    executable(root / "uv", UV)
    executable(root / "trainer", TRAINER)
    pod = Pod(root, repository)
    pod.plan(project="tests", zone="here-1a", workers=2)
    pod.script("exit 0")
    pod.settings = {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "FAKE_GCLOUD": str(root),
        "PROJECT": "tests",
        "ZONE": "here-1a",
        "TOPOLOGY": "v5p-16",
        "POLL_SECONDS": "0.05",
        "TRIES": "4",
        "LATE_SECONDS": "60",
        "STOP_SECONDS": "60",
    }
    for name in re.findall(r"^#   ([A-Z_]+) ", (REPOSITORY / "tpu" / "pod.sh").read_text(), re.MULTILINE):
        pod.settings.setdefault(name, "")  # nothing of the tester's own environment
    yield pod
    for group in pod.groups():
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue
