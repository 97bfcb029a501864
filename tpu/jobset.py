"""`python tpu/jobset.py --topology 2xv5p-128 --image IMAGE --config FILE [key.path=value ...] | kubectl apply -f -`

Fills `jobset.yaml` in for a slice, or several, of any kind. Prints the manifest.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from fusejax.common.cli import run
from fusejax.planning.topology import Topology, parse_topology

# GKE's names, from cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (read in 2026).
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}


def chips_of_a_host(topology: Topology) -> int:
    """Four; but v5e and v6e slices of up to eight chips are one host."""
    chips = topology.chips // topology.slices
    return chips if chips < 4 or topology.shape == "2x4" else 4


def render(
    topology: Topology,
    image: str,
    arguments: list[str],
    *,
    name: str = "fusejax",
    max_restarts: int = 5,
    spot: bool = False,
) -> dict[str, Any]:
    """The manifest of a run.

    Args:
      topology: what to run on.
      image: of `tpu/Dockerfile`, as the cluster pulls it.
      arguments: of `fusejax.train`.
      name: of the JobSet.
      max_restarts: how often the run may crash.
      spot: whether the node pools are of spot VMs.
    """
    jobset = yaml.safe_load(Path(__file__).with_name("jobset.yaml").read_text())
    jobset["metadata"]["name"] = name
    jobset["spec"]["failurePolicy"]["maxRestarts"] = max_restarts
    (slices,) = jobset["spec"]["replicatedJobs"]
    slices["replicas"] = topology.slices
    job = slices["template"]["spec"]
    chips = chips_of_a_host(topology)
    job["completions"] = job["parallelism"] = topology.chips // topology.slices // chips
    pod = job["template"]["spec"]
    pod["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[topology.chip.name],
        "cloud.google.com/gke-tpu-topology": topology.shape,
    }
    if spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    (container,) = pod["containers"]
    container["image"] = image
    container["args"] = arguments
    container["resources"]["limits"]["google.com/tpu"] = chips
    return jobset


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the JobSet of a training run on GKE.")
    parser.add_argument("--topology", required=True, help="as for fusejax.plan: v5p-16, v5e-64, 2xv5p-128")
    parser.add_argument("--image", required=True, help="of tpu/Dockerfile, as the cluster pulls it")
    parser.add_argument("--config", required=True, metavar="FILE", help="in the image: configs/..., or gs://...")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--name", default="fusejax")
    parser.add_argument("--max-restarts", type=int, default=5, help="of crashes; preemptions do not count")
    parser.add_argument("--spot", action="store_true", help="the node pools are of spot VMs")
    options = parser.parse_intermixed_args()
    jobset = render(
        parse_topology(options.topology),
        options.image,
        ["--config", options.config, *options.overrides],
        name=options.name,
        max_restarts=options.max_restarts,
        spot=options.spot,
    )
    yaml.safe_dump(jobset, sys.stdout, sort_keys=False)


if __name__ == "__main__":
    run(main)
