#!/usr/bin/env bash
# The other half of pod.sh: it runs on each TPU VM, and keeps one command running there whatever becomes of ssh.
#
#   worker.sh install              makes the environment (again: brings it up to date)
#   worker.sh start MODULE [ARG]   runs `python -m MODULE ARG ...`, unless it is running; exits 3 if something else is
#   worker.sh status               prints "worker HOST idle", "... running", or "... exit STATUS"; lost: it ended unseen
#   worker.sh log BYTES            prints the log from that offset on
#   worker.sh tail                 prints the end of the log, each line marked with the host
#   worker.sh stop                 SIGTERM, so that a training run saves; SIGKILL after STOP_SECONDS
set -euo pipefail

code=$(cd "$(dirname "$0")/.." && pwd)
venv=$HOME/fusejax-venv
run=$HOME/fusejax-run
mkdir -p "$run"
touch "$run/log"

# The lock is inherited by all that the command starts. So it tells whether the TPU may be in use, also after a crash.
running() { ! flock --shared --nonblock "$run/lock" true; }

case ${1:?a command is missing} in
  install)
    # The VM's own Python is older than what JAX needs. uv brings one along; PIP_BREAK_SYSTEM_PACKAGES lets it in.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    uv=$HOME/.local/bin/uv
    [[ -x $venv/bin/python ]] || "$uv" venv --quiet --python 3.11 "$venv"
    "$uv" pip install --quiet --python "$venv/bin/python" --constraint "$code/constraints.txt" --editable "${code}[tpu]"
    ;;
  start)
    shift
    exec 9>"$run/lock"
    if ! flock --nonblock 9; then
      [[ $(<"$run/command") == "$*" ]] && exit 0
      echo "$(hostname): another command is running: $(<"$run/command")" >&2
      exit 3
    fi
    rm -f "$run/exit" "$run/pid"
    echo "$*" >"$run/command"
    # A session of its own: neither the end of ssh nor its terminal reaches it.
    setsid --fork bash "$0" supervise "$@" </dev/null >>"$run/log" 2>&1
    ;;
  supervise) # by start only
    shift
    echo $$ >"$run/group"
    cd "$code"
    PYTHONUNBUFFERED=1 "$venv/bin/python" -m "$@" &
    echo $! >"$run/pid"
    status=0
    wait $! || status=$?
    echo "$status" >"$run/exit.new"
    mv "$run/exit.new" "$run/exit" # at once: nobody reads half a status
    ;;
  status)
    if running; then state=running
    elif [[ -f $run/exit ]]; then state="exit $(<"$run/exit")"
    elif [[ -f $run/command ]]; then state="exit lost"
    else state=idle; fi
    echo "worker $(hostname) $state"
    ;;
  log) tail -c "+$((${2:-0} + 1))" "$run/log" ;;
  tail) tail -n 20 "$run/log" | sed "s/^/$(hostname): /" ;;
  stop)
    running || exit 0
    kill -TERM "$(<"$run/pid")" || true
    for ((waited = 0; waited < ${STOP_SECONDS:-600}; waited++)); do
      running || exit 0
      sleep 1
    done
    kill -KILL -- "-$(<"$run/group")" || true
    echo 137 >"$run/exit"
    ;;
  *)
    echo "worker.sh: no such command: $1" >&2
    exit 2
    ;;
esac
