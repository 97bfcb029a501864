"""The GKE manifest: valid as Kubernetes and JobSet define it, and what it says about each way that a run ends.

The Job in it is checked against Kubernetes' own JSON schema, in its strict form (unknown fields are errors); the JobSet
against the models generated from JobSet's API (v1alpha2), which Kubeflow publishes. Those models know fields and types,
but not the values that JobSet's webhook checks: these are named here, from the API's reference
(jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2).
"""

import copy
import importlib.util
import re
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from fusejax.distributed.hosts import HOST_LOST, STOPPED
from fusejax.planning.topology import CHIPS, parse_topology
from tests.tpu.conftest import REPOSITORY

Manifest = dict[str, Any]

spec = importlib.util.spec_from_file_location("jobset", REPOSITORY / "tpu" / "jobset.py")
assert spec is not None
assert spec.loader is not None
jobset = importlib.util.module_from_spec(spec)
spec.loader.exec_module(jobset)

TOPOLOGIES = [
    "v4-8",
    "v4-32",
    "tpu7x-2",
    "tpu7x-16",
    "2xtpu7x-128",
    "v5e-1",
    "v5e-8",
    "v5e-16",
    "v5p-8",
    "v5p-16",
    "v6e-256",
    "2xv5p-128",
    "4xv6e-64",
]


def render(topology: str = "2xv5p-128", **options: Any) -> Manifest:
    arguments = ["--config", "configs/run.yaml", "optimizer.learning_rate=1e-6"]
    manifest: Manifest = jobset.render(parse_topology(topology), "here/fusejax:1", arguments, **options)
    return manifest


def job_of(manifest: Manifest) -> Manifest:
    """The Job that JobSet makes of the template, but for its labels."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}


def check(manifest: Manifest) -> None:
    """Raises if Kubernetes or JobSet would refuse the manifest."""
    for version in ("1.31", "1.37"):  # the oldest where all fields are stable, and the newest there is a schema of
        kubernetes_validate.validate(job_of(manifest), version, strict=True)
    model = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest))
    assert model is not None
    assert model.to_dict() == manifest, "a field that JobSet does not have"
    policy = manifest["spec"]["failurePolicy"]
    assert policy["restartStrategy"] in ("Recreate", "BlockingRecreate", "InPlaceRestart")
    names = [rule["name"] for rule in policy["rules"]]
    assert len(set(names)) == len(names)
    for rule in policy["rules"]:
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        assert set(rule["onJobFailureReasons"]) <= {"PodFailurePolicy", "BackoffLimitExceeded"}
    job = job_of(manifest)["spec"]
    # What the API server checks beyond the schema.
    assert job["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy demands it"
    containers = {container["name"] for container in job["template"]["spec"]["containers"]}
    for rule in job["podFailurePolicy"]["rules"]:
        assert rule.get("onExitCodes", {}).get("containerName") in {*containers, None}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_manifests_are_valid(topology: str) -> None:
    check(render(topology))
    check(render(topology, spot=True))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda manifest: manifest["spec"].update(replicas=2),
        lambda manifest: manifest["spec"]["failurePolicy"].update(maxRestarts="5"),
        lambda manifest: manifest["spec"]["failurePolicy"]["rules"][0].update(onJobFailureMessage=["x"]),
        lambda manifest: job_of(manifest)["spec"].update(completion="Indexed"),
        lambda manifest: job_of(manifest)["spec"]["template"]["spec"].update(nodeSelectors={}),
        lambda manifest: job_of(manifest)["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"].update(values="2"),
        lambda manifest: job_of(manifest)["spec"]["template"]["spec"]["containers"][0].pop("name"),
    ],
)
def test_the_check_finds_mistakes(spoil: Any) -> None:
    manifest = render()
    spoil(manifest)
    with pytest.raises((AssertionError, ValueError, kubernetes_validate.ValidationError)):
        check(manifest)


@pytest.mark.parametrize(
    ("topology", "slices", "hosts", "chips", "selector"),
    [
        ("v4-8", 1, 1, 4, ("tpu-v4-podslice", "2x2x1")),
        ("2xv4-32", 2, 4, 4, ("tpu-v4-podslice", "2x2x4")),
        ("tpu7x-2", 1, 1, 1, ("tpu7x", "1x1x1")),
        ("tpu7x-8", 1, 1, 4, ("tpu7x", "2x2x1")),
        ("tpu7x-128", 1, 16, 4, ("tpu7x", "4x4x4")),
        ("ct6e-standard-8t", 1, 1, 8, ("tpu-v6e-slice", "2x4")),
        ("v5e-16", 1, 4, 4, ("tpu-v5-lite-podslice", "4x4")),
        ("v5e-8", 1, 1, 8, ("tpu-v5-lite-podslice", "2x4")),
        ("v5p-8", 1, 1, 4, ("tpu-v5p-slice", "2x2x1")),
        ("v5p-16", 1, 2, 4, ("tpu-v5p-slice", "2x2x2")),
        ("2xv5p-128", 2, 16, 4, ("tpu-v5p-slice", "4x4x4")),
        ("4xv6e-64", 4, 16, 4, ("tpu-v6e-slice", "8x8")),
    ],
)
def test_one_pod_a_host_and_one_job_a_slice(
    topology: str, slices: int, hosts: int, chips: int, selector: tuple[str, str]
) -> None:
    manifest = render(topology)
    job = job_of(manifest)["spec"]
    pod = job["template"]["spec"]
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == slices
    assert (job["completions"], job["parallelism"]) == (hosts, hosts)
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    labels = ("cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology")
    assert tuple(pod["nodeSelector"][label] for label in labels) == selector
    assert slices * hosts * chips == parse_topology(topology).chips


def test_every_chip_has_a_name_on_gke() -> None:
    assert set(jobset.ACCELERATORS) == set(CHIPS)


def decision(manifest: Manifest, exit_code: int, disrupted: bool = False) -> str:
    """What JobSet does after a pod ended so, by the rules of the manifest.

    The messages are those of Kubernetes' Job controller, as JobSet's design document of failure policies quotes them.
    """
    pod = "Container trainer for pod a/b"
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job_of(manifest)["spec"]["podFailurePolicy"]["rules"]):
        suffix = f"matching {rule['action']} rule at index {index}"
        if exit_code in rule.get("onExitCodes", {}).get("values", []):
            reason, message = (
                "PodFailurePolicy",
                f"{pod} failed with exit code {exit_code} {suffix}",
            )
            break
        if disrupted and any(condition["type"] == "DisruptionTarget" for condition in rule.get("onPodConditions", [])):
            reason, message = "PodFailurePolicy", f"Pod a/b has condition DisruptionTarget {suffix}"
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return str(rule["action"])
    return "RestartJobSet"  # JobSet's default; counts


@pytest.mark.parametrize(
    ("exit_code", "disrupted", "action"),
    [
        (2, False, "FailJobSet"),
        (STOPPED, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (STOPPED, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, False, "RestartJobSet"),
        (HOST_LOST, False, "RestartJobSet"),
        (139, False, "RestartJobSet"),
        (25, False, "RestartJobSet"),
    ],
)
def test_how_a_run_ended_decides_whether_it_restarts(exit_code: int, disrupted: bool, action: str) -> None:
    assert decision(render(), exit_code, disrupted) == action


def test_the_command_prints_the_manifest() -> None:
    command = [
        sys.executable,
        str(REPOSITORY / "tpu" / "jobset.py"),
        "--topology",
        "v6e-16",
        "--image",
        "here/fusejax:1",
    ]
    command += [
        "--config",
        "configs/run.yaml",
        "--name",
        "sft",
        "--max-restarts",
        "9",
        "--spot",
        "optimizer.learning_rate=1e-6",
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    manifest = yaml.safe_load(output)
    assert manifest == render("v6e-16", name="sft", max_restarts=9, spot=True)
    assert manifest["metadata"]["name"] == "sft"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 9
    pod = job_of(manifest)["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["args"] == ["--config", "configs/run.yaml", "optimizer.learning_rate=1e-6"]


def test_the_example_is_what_it_says() -> None:
    example = yaml.safe_load((REPOSITORY / "tpu" / "jobset.yaml").read_text())
    assert example == jobset.render(parse_topology("v5p-16"), "IMAGE", ["--config", "CONFIG"])


def test_the_image_is_built_from_what_is_committed() -> None:
    lines = (REPOSITORY / "tpu" / "Dockerfile").read_text().splitlines()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.split()
    sources = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "fusejax", "configs"} <= set(sources)
    for source in sources:
        assert any(path == source or path.startswith(f"{source}/") for path in tracked), source
    for needed in ("README.md", "LICENSE"):  # pyproject.toml names them
        assert needed in sources
