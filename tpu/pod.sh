#!/usr/bin/env bash
# Trains on a Cloud TPU slice that has to be queued for, and that may be preempted.
#
#   tpu/pod.sh train [--keep] CONFIG [key.path=value ...]   everything: up, install, train, restart until done, delete
#   tpu/pod.sh up                      queue for the slice and wait until it is there
#   tpu/pod.sh run MODULE [ARG ...]    run `python -m MODULE ARG ...` once on all workers of the slice
#   tpu/pod.sh status | logs [WORKER]
#   tpu/pod.sh down                    let the run save, then delete the slice
#
# `train` may be started again at any time, with the same command: it attaches to what is there. When it ends, for
# whatever reason, it deletes the slice, because an idle slice costs as much as a busy one; on Ctrl-C it lets the run
# save first. With --keep the slice stays (and its costs). When the terminal goes away, training goes on: use tmux.
#
# Settings, from the environment:
#   TOPOLOGY         an accelerator type: v4-8, v5p-16, v5e-16 or v5litepod-16, v6e-64, 2xv5p-128 (two slices)
#   ZONE             must offer that TPU; best in the bucket's region
#   PROJECT          default: gcloud's current project
#   NAME             default: fusejax
#   CAPACITY         spot (default), on-demand or reserved
#   SERVICE_ACCOUNT  whom the workers act as; default: the project's default account
#   RUNTIME          TPU software version; default: by TPU generation
#   WAIT_HOURS       give up queueing after so long; default: 24
#   MAX_CRASHES      how often to restart a run that crashed; default: 5. Preemptions do not count
#   POLL_SECONDS, TRIES, LATE_SECONDS, STOP_SECONDS: see below
set -euo pipefail
cd "$(dirname "$0")/.."

: "${NAME:=fusejax}" "${CAPACITY:=spot}" "${WAIT_HOURS:=24}" "${MAX_CRASHES:=5}" "${POLL_SECONDS:=20}"
: "${TRIES:=30}"         # of a gcloud call that fails through no fault of ours, or of reaching all workers
: "${LATE_SECONDS:=180}" # how long workers may outlive one that failed
: "${STOP_SECONDS:=600}" # how long a run may take to save
readonly worker='bash fusejax/tpu/worker.sh'
keep='' owned='' state='' out='' outcome='' offset=0
scratch=$(mktemp -d)

say() { echo "$(date +%T) pod: $*" >&2; }
die() {
  say "$*"
  exit 1
}
not_ours() { # so leave it alone
  owned=''
  die "$*: choose another NAME"
}
usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' tpu/pod.sh >&2
  exit 2
}

# tpus ARG...: `gcloud compute tpus ARG...`, its output in `out`. What waiting may mend is tried again; what only the
# user can mend ends the script. Returns 4: no such thing; 5: it exists already; 6: refused as it is, or as things are.
tpus() {
  local try
  for ((try = 1; ; try++)); do
    out=$(gcloud compute tpus "$@" "${where[@]}" 2>"$scratch/error") && return 0
    case $(<"$scratch/error") in
      *PERMISSION_DENIED* | *"does not have permission"* | *SERVICE_DISABLED* | *UNAUTHENTICATED* | *"active account"*)
        die "Google Cloud refuses; check your login, PROJECT, its TPU API and your role: $(<"$scratch/error")" ;;
      *NOT_FOUND* | *"was not found"*) return 4 ;;
      *ALREADY_EXISTS* | *"already exists"*) return 5 ;;
      *FAILED_PRECONDITION* | *INVALID_ARGUMENT* | *"unrecognized arguments"*) return 6 ;;
      *"per minute"* | *RATE_LIMIT_EXCEEDED* | *"no more capacity"*) ;;
      *RESOURCE_EXHAUSTED* | *"Quota limit"* | *"Quota '"*)
        die "No quota for $CAPACITY $TOPOLOGY in $ZONE; ask for it (docs/tpu.md, \"Quota\") or delete other requests," \
          "also suspended ones: $(<"$scratch/error")" ;;
    esac
    ((try < TRIES)) || die "gcloud failed $TRIES times in a row: $(<"$scratch/error")"
    sleep "$POLL_SECONDS"
  done
}

# Sets `state`: ABSENT, the queued resource's, or, once that is ACTIVE, that of a node which is not READY: a preempted
# node shows before its queued resource does.
look() {
  local type='' node
  state=ABSENT
  tpus queued-resources describe "$NAME" --format='value(state.state,tpu.nodeSpec[0].node.acceleratorType)' || return 0
  read -r state type <<<"$out"
  [[ -z $type || $type == "$accelerator" ]] || not_ours "$NAME exists as $type, not $accelerator"
  [[ $state == ACTIVE ]] || return 0
  for node in "${nodes[@]}"; do
    tpus tpu-vm describe "$node" --format='value(state)' || out=MISSING
    [[ $out == READY ]] || state=$out
  done
}

gone() {
  look
  case $state in
    ABSENT | SUSPENDING | SUSPENDED | FAILED | DELETING | PREEMPTED | TERMINATED | STOPPED) ;;
    *) return 1 ;;
  esac
}

# Returns once the slice is there, whatever there was before.
up() {
  local deadline=$((SECONDS + WAIT_HOURS * 3600)) failures=0 last=''
  while look; [[ $state != ACTIVE ]]; do
    [[ $state == "$last" ]] || say "$NAME: $state"
    last=$state
    case $state in
      ABSENT)
        offset=0
        # 5, it exists already: describe lags behind create.
        tpus queued-resources create "$NAME" "${request[@]}" || (($? == 5)) ||
          die "Google Cloud does not take this request; check TOPOLOGY, ZONE and RUNTIME: $(<"$scratch/error")" ;;
      FAILED)
        tpus queued-resources describe "$NAME" --format='value(state.failedData.error.message)' || out=''
        ((++failures < 3)) || die "The request for $TOPOLOGY failed $failures times: $out"
        say "The request failed: $out. Asking again."
        delete ;;
      SUSPENDED | PREEMPTED | TERMINATED | STOPPED) delete ;;
    esac
    ((SECONDS < deadline)) || die "No $TOPOLOGY within $WAIT_HOURS hours: try another ZONE or CAPACITY, or wait longer"
    sleep "$POLL_SECONDS"
  done
  say "$NAME: ACTIVE"
}

# Returns once nothing is left. --force: with its nodes. What is SUSPENDING or DELETING refuses: wait and ask again.
delete() {
  local deadline=$((SECONDS + 1800))
  while look; [[ $state != ABSENT ]]; do
    say "Deleting $NAME ($state)"
    [[ $state == DELETING ]] || tpus queued-resources delete "$NAME" --force --async || true
    ((SECONDS < deadline)) || die "$NAME is still there after half an hour, and may cost: look in the Cloud console"
    sleep "$POLL_SECONDS"
  done
}

# on WORKER COMMAND: over ssh, on one worker of the first slice, or on `all` of every slice. Fails if one of them does.
on() {
  local node status=0
  for node in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker="$1" --command="$2" \
      --ssh-flag='-o ConnectTimeout=30' --ssh-flag='-o ServerAliveInterval=15' \
      </dev/null 2>"$scratch/error" || status=$?
    [[ $1 == all ]] || break
  done
  return "$status"
}

upload() {
  local node
  git archive --format=tar.gz --output="$scratch/fusejax.tar.gz" HEAD
  for node in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm scp "$scratch/fusejax.tar.gz" "$node:" "${where[@]}" --worker=all \
      </dev/null 2>"$scratch/error" || return
  done
}

# patiently COMMAND...: until it succeeds, as fresh VMs refuse ssh for a while. Sets `outcome` when it never does.
patiently() {
  local try why
  for ((try = 1; ; try++)); do
    "$@" && return 0
    (($? != 3)) || not_ours "$(grep running: "$scratch/error" | head -n 1)"
    why=$(tail -n 1 "$scratch/error")
    if gone; then outcome='gone'; return 1; fi
    if ((try >= TRIES)); then outcome='stuck'; return 1; fi
    say "Not all workers did it yet: $why"
    sleep "$POLL_SECONDS"
  done
}

# launch MODULE [ARG...]: installs and starts it on every worker, unless it is running there already.
launch() {
  local start
  patiently on all "test ! -e fusejax/tpu/worker.sh || $worker status" >"$scratch/status" || return
  if grep -q ' running$' "$scratch/status"; then
    say "Attaching to the run on $NAME"
  else
    [[ -z $(git status --porcelain --untracked-files=no) ]] || say "Note: changes that are not committed stay here"
    say "Installing $(git rev-parse --short HEAD) on all workers"
    patiently upload || return
    patiently on all "rm -rf fusejax && mkdir fusejax && tar -xzf fusejax.tar.gz -C fusejax && $worker install" ||
      return
  fi
  start=$(printf ' %q' "$@")
  patiently on all "$worker start$start" || return
  say "Running on all workers: python -m$start"
}

# Prints what worker 0 has logged since the last time; after a torn connection, the rest the next time.
stream() {
  local status=0
  on 0 "$worker log $offset" >"$scratch/log" || status=$?
  cat "$scratch/log"
  offset=$((offset + $(wc -c <"$scratch/log")))
  return "$status"
}

# Waits for the run to end, and shows worker 0's log meanwhile. Sets `outcome`:
# done, saved (preempted, start again), mistake (never again), broken, gone (the slice is), stuck (no answer).
watch() {
  local silent=0 late='' ended
  while sleep "$POLL_SECONDS"; do
    if ! on all "$worker status" >"$scratch/status" || ! stream; then
      if gone; then outcome='gone'; return; fi
      if ((++silent >= TRIES)); then outcome='stuck'; return; fi
      continue
    fi
    silent=0
    ended=$(sed -n 's/^worker .* exit //p' "$scratch/status" | sort -u | paste -sd ' ' -)
    case $ended in
      '' | 0) outcome='done' ;;
      2 | '2 '* | *' 2' | *' 2 '*) outcome='mistake' ;;
      75 | '0 75') outcome='saved' ;;
      *) outcome='broken' ;;
    esac
    grep -q ' running$' "$scratch/status" || return 0
    [[ $outcome != mistake ]] || return 0
    # Workers end at slightly different times. When one has failed, the others cannot go on for long without it.
    if [[ $outcome == 'done' ]]; then late=''; continue; fi
    : "${late:=$((SECONDS + LATE_SECONDS))}"
    ((SECONDS < late)) || return 0
  done
}

# attempt MODULE [ARG...]: one run on the slice as it is. Leaves no worker running unless it is lost anyway.
attempt() {
  if launch "$@"; then watch; fi
  case $outcome in broken | mistake) on all "$worker tail" >&2 || true ;; esac
  case $outcome in broken | mistake | saved) on all "STOP_SECONDS=$STOP_SECONDS $worker stop" || true ;; esac
}

train() {
  local crashes=0
  owned=yes
  while true; do
    up
    attempt fusejax.train --config "$@"
    case $outcome in
      done) say "Done"; return ;;
      mistake) say "The run refuses its configuration or data: see above"; exit 2 ;;
      saved) say "Interrupted, and saved: going on" ;;
      gone) say "$NAME is gone ($state): asking for another"; delete ;;
      *)
        ((++crashes <= MAX_CRASHES)) || die "Crashed $crashes times: see above"
        say "The run is $outcome: restart $crashes of $MAX_CRASHES"
        # Workers that do not answer may sit on a broken host.
        [[ $outcome != stuck ]] || delete ;;
    esac
  done
}

down() {
  on all "STOP_SECONDS=$STOP_SECONDS $worker stop" || true
  delete
}

# Whatever ended the script: save what runs, and leave nothing that costs.
finish() {
  local status=$?
  trap - EXIT INT TERM HUP
  trap 'say "NOT deleted: run tpu/pod.sh down"; exit 130' INT TERM
  if [[ $owned && ! $keep ]]; then
    say "Stopping the run and deleting $NAME"
    down
  fi
  rm -rf "$scratch"
  exit "$status"
}

command -v gcloud >/dev/null || die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
subcommand=${1:-}
shift || true
if [[ ${1:-} == --keep ]]; then keep=yes; shift; fi
: "${PROJECT:=$(gcloud config get-value project 2>/dev/null)}"
[[ $PROJECT ]] || die "PROJECT is not set"
: "${ZONE:?is not set, for example us-east5-a}" "${TOPOLOGY:?is not set, for example v5p-16}"
[[ ${TOPOLOGY,,} != *7x-* ]] || die "TPU7x has no queued resources, only machines on GKE: tpu/jobset.py"
[[ ${TOPOLOGY,,} =~ ^(([1-9][0-9]*)x)?(v4|v5e|v5litepod|v5p|v6e)-([1-9][0-9]*)$ ]] ||
  die "TOPOLOGY must look like v5p-16 or 2xv5p-128 (v4, v5e, v5p, v6e), not $TOPOLOGY"
slices=${BASH_REMATCH[2]:-1}
accelerator=${BASH_REMATCH[3]/v5e/v5litepod}-${BASH_REMATCH[4]}
case ${BASH_REMATCH[3]} in
  v4) : "${RUNTIME:=tpu-ubuntu2204-base}" ;;
  v5e | v5litepod) : "${RUNTIME:=v2-alpha-tpuv5-lite}" ;;
  v5p) : "${RUNTIME:=v2-alpha-tpuv5}" ;;
  v6e) : "${RUNTIME:=v2-alpha-tpuv6e}" ;;
esac
where=("--project=$PROJECT" "--zone=$ZONE" --quiet)
# Asked for only so long: when nobody watches any more, the slice must not come.
request=("--accelerator-type=$accelerator" "--runtime-version=$RUNTIME" "--valid-until-duration=${WAIT_HOURS}h"
  --scopes=https://www.googleapis.com/auth/cloud-platform)
if ((slices == 1)); then
  nodes=("$NAME")
  request+=("--node-id=$NAME")
else
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$NAME-$i"); done
  request+=("--node-count=$slices" "--node-prefix=$NAME")
fi
case $CAPACITY in
  spot | reserved) request+=("--$CAPACITY") ;;
  on-demand) ;;
  *) die "CAPACITY must be spot, on-demand or reserved, not $CAPACITY" ;;
esac
[[ -z ${SERVICE_ACCOUNT:-} ]] || request+=("--service-account=$SERVICE_ACCOUNT")

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'keep=yes; exit 129' HUP

case $subcommand in
  train)
    [[ $# -gt 0 ]] || usage
    for argument in "${@:2}"; do [[ $argument == *=* ]] || usage; done
    # Better said now than after hours in the queue.
    [[ $1 == gs://* ]] || git cat-file -e "HEAD:$1" 2>/dev/null || die "$1 is not committed: workers would not get it"
    train "$@" ;;
  up) up ;;
  run)
    [[ $# -gt 0 ]] || usage
    look
    [[ $state == ACTIVE ]] || die "$NAME is $state: run tpu/pod.sh up first"
    attempt "$@"
    say "$outcome"
    case $outcome in done) ;; mistake) exit 2 ;; saved) exit 75 ;; *) exit 1 ;; esac ;;
  status)
    look
    echo "$NAME $state"
    [[ $state != ACTIVE ]] || on all "test ! -e fusejax/tpu/worker.sh || $worker status" ;;
  logs) on "${1:-0}" 'tail -n 200 -F fusejax-run/log' ;;
  down) down ;;
  *) usage ;;
esac
