"""Stands in for `gcloud`: queued resources with their states, TPU VMs that are directories here, and scripted faults.

The directory `$FAKE_GCLOUD` holds `plan.json`:
  project, zone   what the caller must name
  workers         TPU VMs of each slice
  lives           for each created resource in turn: `states` that successive looks see (the last one stays), and
                  optionally `end` = {"after": status polls, "as": "SUSPENDED" or "PREEMPTED"}: the slice is taken away,
                  and the resource or only the node says so
  faults          `on` (start of the command), `times`, and `status` and `stderr` of the failure; `drop`: the command
                  does run, but its connection is lost before any output arrives
and `state.json` and `calls`, which are kept here. Only the flags that the real commands document are taken.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(os.environ["FAKE_GCLOUD"])
PLAN = json.loads((ROOT / "plan.json").read_text())
# fmt: off
CREATE_FLAGS = ["accelerator-type", "runtime-version", "node-id", "node-count", "node-prefix", "service-account",
                "scopes", "valid-until-duration"]
# fmt: on


def fail(status, message):
    print(message, file=sys.stderr)
    sys.exit(status)


def error(group, command, code, text):
    fail(1, f"ERROR: (gcloud.compute.tpus.{group}.{command}) {code}: {text}")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="gcloud", allow_abbrev=False)
    groups = parser.add_subparsers(dest="group", required=True)
    commands = {}
    for group, names in {
        "queued-resources": ["create", "describe", "delete"],
        "tpu-vm": ["describe", "ssh", "scp"],
    }.items():
        subparsers = groups.add_parser(group, allow_abbrev=False).add_subparsers(dest="command", required=True)
        for name in names:
            command = commands[group, name] = subparsers.add_parser(name, allow_abbrev=False)
            command.add_argument("--project", required=True)
            command.add_argument("--zone", required=True)
            command.add_argument("--quiet", action="store_true", required=True)  # else it would ask
            command.add_argument("name")
    for flag in CREATE_FLAGS:
        commands["queued-resources", "create"].add_argument(f"--{flag}")
    capacity = commands["queued-resources", "create"].add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true")
    capacity.add_argument("--reserved", action="store_true")
    for group in ("queued-resources", "tpu-vm"):
        commands[group, "describe"].add_argument("--format", required=True)
    commands["queued-resources", "delete"].add_argument("--force", action="store_true")
    commands["queued-resources", "delete"].add_argument("--async", action="store_true")
    for name in ("ssh", "scp"):
        commands["tpu-vm", name].add_argument("--worker", default="0")
    commands["tpu-vm", "ssh"].add_argument("--command", dest="remote", required=True)  # else a terminal
    commands["tpu-vm", "ssh"].add_argument("--ssh-flag", action="append")
    commands["tpu-vm", "scp"].add_argument("target")
    return parser.parse_args(arguments)


class State:
    """`state.json`, locked while it is read and changed."""

    def __enter__(self):
        self.lock = (ROOT / "state.lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        path = ROOT / "state.json"
        self.data = json.loads(path.read_text()) if path.exists() else {"resource": None, "lives": 0, "faults": {}}
        return self.data

    def __exit__(self, *_):
        new = ROOT / "state.new"  # renamed, because the tests kill
        new.write_text(json.dumps(self.data))
        new.replace(ROOT / "state.json")
        self.lock.close()


def homes(life, node):
    """The workers' home directories of one node."""
    return [ROOT / "workers" / str(life) / f"{node}-w{index}" for index in range(PLAN["workers"])]


def end_workers(resource):
    """What losing a VM does to its processes; the directories stay, for the tests to look at."""
    for node in resource["nodes"]:
        for home in homes(resource["life"], node):
            group = home / "fusejax-run" / "group"
            if group.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(group.read_text()), signal.SIGKILL)


def create(state, arguments):
    if state["resource"]:
        error("queued-resources", "create", "ALREADY_EXISTS", f"Resource '{arguments.name}' already exists")
    if not arguments.accelerator_type.startswith(("v4-", "v5p-", "v5litepod-", "v6e-")):
        error("queued-resources", "create", "INVALID_ARGUMENT", "Accelerator type is not found in zone")
    if bool(arguments.node_id) == bool(arguments.node_count):
        fail(2, "ERROR: Exactly one of (--node-id | --node-count --node-prefix) must be specified")
    lives = PLAN.get("lives") or [{}]
    life = lives[min(state["lives"], len(lives) - 1)]
    count = int(arguments.node_count or 1)
    state["resource"] = {
        "life": state["lives"],
        "type": arguments.accelerator_type,
        "nodes": [arguments.node_id] if arguments.node_id else [f"{arguments.node_prefix}-{i}" for i in range(count)],
        "states": list(life.get("states", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])),
        "end": life.get("end"),
        "polls": 0,
        "node": "READY",
    }
    state["lives"] += 1


def describe(state, arguments):
    resource = state["resource"]
    if not resource:
        error("queued-resources", "describe", "NOT_FOUND", f"Resource '{arguments.name}' was not found")
    if "failedData" in arguments.format:
        print("The TPU could not be created before the deadline")
        return
    print(f"{resource['states'][0]}\t{resource['type'] if len(resource['nodes']) == 1 else ''}")
    if len(resource["states"]) > 1:
        resource["states"].pop(0)
    if resource["states"][0] == "GONE":
        state["resource"] = None


def delete(state, arguments):
    resource = state["resource"]
    if not resource:
        error("queued-resources", "delete", "NOT_FOUND", f"Resource '{arguments.name}' was not found")
    if resource["states"][0] in ("SUSPENDING", "DELETING"):
        error("queued-resources", "delete", "FAILED_PRECONDITION", f"the resource is {resource['states'][0]}")
    if not arguments.force and resource["states"][0] not in ("SUSPENDED", "FAILED", "WAITING_FOR_RESOURCES"):
        error("queued-resources", "delete", "FAILED_PRECONDITION", "the resource has nodes; delete them or use --force")
    end_workers(resource)
    resource["node"] = None
    resource["states"] = ["DELETING", "DELETING", "GONE"]


def node_of(state, arguments, name):
    resource = state["resource"]
    if not resource or name not in resource["nodes"] or not resource["node"] or resource["states"][0] not in LIVE:
        error("tpu-vm", arguments.command, "NOT_FOUND", f"Resource '{name}' was not found")
    return resource


LIVE = ("ACTIVE", "SUSPENDING")


def poll(resource):
    """Counts a look at the workers, and takes the slice away when its time has come."""
    resource["polls"] += 1
    end = resource["end"]
    if end and resource["polls"] > end["after"] and resource["node"] == "READY":
        end_workers(resource)
        resource["node"] = "PREEMPTED"
        if end["as"] == "SUSPENDED":
            resource["states"] = ["SUSPENDING", "SUSPENDING", "SUSPENDED"]


def connect(arguments, name, drop):
    """Runs an ssh command, or copies a file, on one or all workers of a node."""
    import shutil  # here, because most calls need neither and there are many
    import subprocess

    with State() as state:
        resource = node_of(state, arguments, name)
        if arguments.command == "ssh" and "worker.sh status" in arguments.remote and arguments.worker == "all":
            poll(resource)
        node, life = resource["node"], resource["life"]
    if node != "READY":
        fail(255, "ssh: connect to host 10.0.0.2 port 22: Connection timed out")
    result = 0
    for index, home in enumerate(homes(life, name)):
        if arguments.worker not in ("all", str(index)):
            continue
        home.mkdir(parents=True, exist_ok=True)
        if arguments.command == "scp":
            shutil.copy(arguments.name, home)
            continue
        environment = {
            "HOME": str(home),
            "PATH": f"{ROOT / 'worker_bin'}:/usr/bin:/bin",
            "FAKE_GCLOUD": str(ROOT),
            "FAKE_HOST": home.name,
            "FAKE_WORKER": str(index),
        }
        output = subprocess.DEVNULL if drop else None
        command = ["bash", "-c", arguments.remote]
        status = subprocess.run(command, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=output).returncode
        if status:
            print(
                f"##### Command execution on worker {index} failed with exit status {status}. Continuing.",
                file=sys.stderr,
            )
        result = result or status
    if drop:
        fail(255, "client_loop: send disconnect: Broken pipe")
    sys.exit(result)


def fault_of(call):
    """The fault that this call meets, if any is left."""
    with State() as state:
        for number, fault in enumerate(PLAN.get("faults", [])):
            met = state["faults"].get(str(number), 0)
            if call.startswith(fault["on"]) and fault.get("with", "") in call and met < fault["times"]:
                state["faults"][str(number)] = met + 1
                return fault
    return None


def main():
    call = " ".join(sys.argv[3:])
    if sys.argv[1:] == ["config", "get-value", "project"]:
        print(PLAN["project"])
        return
    if sys.argv[1:3] != ["compute", "tpus"]:
        fail(2, f"ERROR: (gcloud) Invalid choice: {sys.argv[1:3]}")
    arguments = parse(sys.argv[3:])
    with (ROOT / "calls").open("a") as calls:
        calls.write(call + "\n")
    fault = fault_of(call)
    if fault and not fault.get("drop"):
        fail(fault["status"], fault["stderr"])
    if (arguments.project, arguments.zone) != (PLAN["project"], PLAN["zone"]):
        error(arguments.group, arguments.command, "PERMISSION_DENIED", "The caller does not have permission")
    if arguments.command in ("ssh", "scp"):
        connect(arguments, arguments.target.rstrip(":") if arguments.command == "scp" else arguments.name, fault)
        return
    with State() as state:
        if arguments.group == "tpu-vm":
            print(node_of(state, arguments, arguments.name)["node"])
        else:
            {"create": create, "describe": describe, "delete": delete}[arguments.command](state, arguments)
