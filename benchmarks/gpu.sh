#!/usr/bin/env bash
# Everything that only a GPU can show, part by part: bash benchmarks/gpu.sh [part …]
#
#   data       the Sudokus of the trace and the training run: 1,000 × 1,001 from SUDOKU_SOURCE (a folder with train.csv
#              and test.csv), or generated where it is not set
#   reference  the tests against the original's numbers, on CUDA in float32 with TF32 off
#   trace      200 steps in float32 and bfloat16, ours and the baseline: losses, as table and picture
#   graph      40 steps and two evaluation batches as a CUDA graph and kernel by kernel: losses, halting, answers
#   resume     pretrain.py for 40 steps, and again from its state after 20: metrics line by line
#   attention  PyTorch's attention backends and FlashAttention: errors against float64, times
#   mixing     the kernel of models/mixing.py with every tile that is tried: errors against float64, times
#   compile    eager, compiled blocks, compiled whole: losses of the first steps, compile times
#   nccl       gradients through NCCL, with one rank
#   loader     sampler and loader at batch 768
#   sudoku     one training step at batch 96 and 768: time, TFLOP/s, share of the roofline, peak memory; at 96 with the
#              real loader too
#   long       the same for ARC and mazes, 901 positions, at batch 96
#   trm        the same for TRM with mlp_t on Sudoku, at batch 384
#   profile    the kernels of a step, Sudoku at batch 96 and 768, TRM at 384, ARC at 96; the wait for the host; traces
#   evaluate   puzzles per second, halt=max and halt=q
#   train      EXPERIMENT (sudoku_extreme_1k) with the settings TRAIN ("lr=2e-4 …"), for MINUTES more minutes; give the
#              part again, as a new command, to go on
#   score      the newest checkpoint of that run, by both rules of halting
#
# Without a part: all of them, once. Every command in a part should take under 10 minutes on an H100 (it fails after
# LIMIT seconds) and leaves a .md file, and JSON if there is any, in OUT (default: benchmarks/results/gpu). PYTHON is the
# interpreter. Without CUDA, or with TOY=1, everything runs at toy size on the CPU, in three minutes, or two with
# DISABLE_COMPILE=1: this shows only that it runs.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
OUT=${OUT:-benchmarks/results/gpu}
LIMIT=${LIMIT:-580}
MINUTES=${MINUTES:-8}
EXPERIMENT=${EXPERIMENT:-sudoku_extreme_1k}
read -ra TRAIN <<<"${TRAIN:-}"
PARTS=(data reference trace graph resume attention mixing compile nccl loader sudoku long trm profile evaluate train score)
DATA=$OUT/sudoku
RUN=$OUT/run
export WANDB_MODE=${WANDB_MODE:-disabled}
mkdir -p "$OUT"

if [ -z "${TOY:-}" ]; then
    TOY=$("$PYTHON" -c 'import torch; print("" if torch.cuda.is_available() else 1)')
fi
TOY_OPTION=()
if [ -n "$TOY" ]; then
    TOY_OPTION=(--toy --device cpu)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi

# Run python with these arguments, and keep what it prints as <part>.md.
keep() {
    local name=$1
    shift
    echo "\$ python $*"
    timeout "$LIMIT" "$PYTHON" "$@" | tee "$OUT/$name.md"
}

data() {
    local options=(--subsample-size 1000 --num-aug 1000)
    [ -e "$DATA/identifiers.json" ] && return
    if [ -n "$TOY" ]; then
        options=(--generate --num-train 64 --num-test 16 --num-aug 3)
    elif [ -n "${SUDOKU_SOURCE:-}" ]; then
        options+=(--source-dir "$SUDOKU_SOURCE")
    else
        options+=(--generate --num-train 1000 --num-test 1000)
    fi
    keep data dataset/build_sudoku_dataset.py --output-dir "$DATA" "${options[@]}"
}

reference() {
    local device=cuda tests=(tests/test_{reference_models,losses,adam_atan2,sparse_embedding}.py)
    [ -n "$TOY" ] && device=cpu tests=(tests/test_losses.py) # `make test` runs the others on a CPU anyway
    HRM_TEST_DEVICE=$device keep reference -m pytest -p no:cacheprovider -m "not slow" "${tests[@]}"
}

# A part of benchmarks/agreement.py, with further options.
agree() { keep "$1" -m benchmarks.agreement "$@" "${TOY_OPTION[@]}"; }

trace() { data; agree trace --data-path "$DATA" --out "$OUT"; }
resume() { data; agree resume --data-path "$DATA"; }
graph() { agree graph; }
attention() { agree attention; }
compile() { agree compile; }
nccl() { agree nccl; }

mixing() {
    local options=()
    if [ -n "$TOY" ]; then
        "$PYTHON" -c 'import triton' 2>/dev/null || {
            echo "mixing: left out, there is no Triton here"
            return
        }
        options=(--toy --device cpu --repeats 1)
    fi
    TRITON_INTERPRET=${TOY:-0} keep mixing -m benchmarks.mixing "${options[@]}"
}

loader() {
    local options=()
    [ -n "$TOY" ] && options=(--toy --repeats 2 --count 20)
    keep loader -m benchmarks.loader --json "$OUT/loader.json" "${options[@]}"
}

# One training step of a size, with further options.
step() {
    local name=$1 options=(--size "$2" "${@:3}")
    [ -n "$TOY" ] && options=(--repeats 2 --no-compile "${@:3}") # --toy chooses the size
    keep "$name" -m benchmarks.step --json "$OUT/$name.json" "${options[@]}" "${TOY_OPTION[@]}"
}

sudoku() {
    local batch=96
    [ -n "$TOY" ] && batch=8
    step step-sudoku sudoku
    step step-sudoku-loader sudoku --loader --batch "$batch"
}

long() {
    if [ -n "$TOY" ]; then
        echo "long: left out at toy size, it is the same as sudoku"
    else
        step step-arc arc
        step step-maze maze
    fi
}

trm() {
    step step-trm trm
}

profile() {
    local sizes=(sudoku trm arc) size
    [ -n "$TOY" ] && sizes=(toy)
    for size in "${sizes[@]}"; do
        keep "profile-$size" -m benchmarks.profile --size "$size" --out "$OUT" "${TOY_OPTION[@]}"
    done
}

evaluate() {
    keep evaluate -m benchmarks.evaluate --json "$OUT/evaluate.json" "${TOY_OPTION[@]}"
}

train() {
    data
    local minutes=$MINUTES options=()
    if [ -n "$TOY" ]; then
        minutes=0.01
        options=(global_batch_size=8 epochs=8 eval_interval=4 lr=1e-3 lr_warmup_steps=10 arch.hidden_size=32
            arch.num_heads=2 arch.H_layers=1 arch.L_layers=1 arch.halt_max_steps=4 device=cpu compile=off)
        pretrain "$minutes" "${options[@]}" # so that the next one has something to go on from
        minutes=1
    fi
    pretrain "$minutes" "${options[@]}"
    keep curve -m training.report "$RUN"
}

pretrain() {
    local minutes=$1
    shift
    keep train pretrain.py "+experiment=$EXPERIMENT" "data_path='$DATA'" "checkpoint_path='$RUN'" resume=true \
        checkpoint_minutes=3 "max_minutes=$minutes" "${TRAIN[@]}" "$@"
}

score() {
    local newest device=auto
    [ -n "$TOY" ] && device=cpu
    newest=$(find "$RUN" -maxdepth 1 -name 'step_*' -type f | sort -V | tail -n 1)
    if [ -z "$newest" ]; then
        echo "score: no checkpoint in $RUN yet; give the part train again" >&2
        return 1
    fi
    for halt in max q; do
        keep "score-$halt" evaluate.py "checkpoint=$newest" "halt=$halt" save_format=none "device=$device"
    done
}

[ "$#" -gt 0 ] || set -- "${PARTS[@]}"
for part in "$@"; do
    if [[ " ${PARTS[*]} " != *" $part "* ]]; then
        echo "error: no part '$part'; choose among: ${PARTS[*]}" >&2
        exit 2
    fi
done
for part in "$@"; do
    printf '\n== %s\n' "$part"
    "$part"
done
echo "files: $OUT"
