#!/bin/sh
# What chapter 6 shows as recorded: times the loss and the trainer, trains the students, and joins the course.
#
#   benchmarks/chapter_06.sh TEXTS OUT [PART …]   parts: texts loss step study draft quantized pair pipeline
#
# TEXTS holds prose.txt and poetry.txt (poems between blank lines), or either as .xz; code is this machine's own
# Python. One H200 takes about two minutes to make tokens of them, once; then three for loss, four for step,
# STUDY_MINUTES (12) for study and five more to find out how many steps that are, unless STUDY_STEPS says it;
# DRAFT_MINUTES (6) and two for draft, which takes DRAFT_OPTIONS; seven for quantized, eight for pair (a model of
# 923 M parameters, and a draft that learns from it, which takes PAIR_OPTIONS), and three for pipeline. The study runs in WORKERS (2)
# processes, on GPUS (1) in turns; other parts can run beside it (CUDA_VISIBLE_DEVICES) when there are tokens,
# which the part texts makes alone. What is trained stays in OUT, and all goes on from there when
# the same command runs again; lines are added to benchmarks/results. pipeline takes the draft and the pair of
# OUT where they are there.
set -eu
. "$(dirname -- "$0")/with_texts.sh"
workers=${WORKERS:-2} gpus=${GPUS:-1}

shared_texts() { # the same, made into tokens once for all parts
    with_texts "$@" --prepared "$out/texts"
}

loss() {
    "$python" "$root/benchmarks/kd_loss.py" --only check,memory,speed,kernel
}

step() {
    for objective in response both; do
        "$python" "$root/benchmarks/distill_step.py" --objective "$objective"
    done
}

study() { # by xargs: what `&` starts ignores Ctrl-C; as many processes, each with its share of the runs
    set -- "$python" "$root/benchmarks/distill_study.py" --out "$out/study" --workers "$workers" \
        --minutes "${STUDY_MINUTES:-12}" ${STUDY_STEPS:+--steps "$STUDY_STEPS"} --prepared "$out/texts" \
        --text "prose=$prose" --blocks "poetry=$poetry" --python code=installed
    "$@" --plan-only
    seq 0 $((workers - 1)) | xargs -P "$workers" -I {} \
        sh -c 'number=$1 gpus=$2 share=$3; shift 3
            [ "$gpus" -eq 1 ] || export CUDA_VISIBLE_DEVICES=$((number % gpus))
            exec "$@" --share "$share"' \
        one {} "$gpus" "{}/$workers" "$@"
    "$python" "$root/benchmarks/distill_study.py" --out "$out/study" --table
}

draft() {
    # shellcheck disable=SC2086 # options are several words
    shared_texts "$python" "$root/benchmarks/distill_draft.py" --out "$out/draft" \
        --minutes "${DRAFT_MINUTES:-6}" ${DRAFT_OPTIONS:-}
}

quantized() {
    shared_texts "$python" "$root/benchmarks/distill_quantized.py" --out "$out/quantized"
}

pair() { # a target as large as those that people speculate with, and the draft that learns from it
    [ -e "$out/pair/target/config.json" ] ||
        shared_texts "$python" "$root/benchmarks/train_target.py" --out "$out/pair" --shape wide \
            --minutes 2.5 --tune-minutes 0
    # shellcheck disable=SC2086 # options are several words
    shared_texts "$python" "$root/benchmarks/distill_draft.py" --teacher "$out/pair/target" --start stored \
        --batch-size 24 --out "$out/pair" --minutes 1.5 ${PAIR_OPTIONS:-}
}

texts() {
    with_texts "$python" "$root/benchmarks/distill_runs.py" --out "$out/texts"
}

pipeline() {
    set -- "$python" "$root/benchmarks/pipeline.py"
    [ ! -e "$out/draft/draft/config.json" ] || set -- "$@" --drafter "$out/draft/draft"
    [ ! -e "$out/pair/draft/config.json" ] || set -- "$@" --pair "$out/pair/target,$out/pair/draft"
    "$@"
}

[ $# -gt 0 ] || set -- texts loss step study draft quantized pair pipeline
for part; do
    case $part in
        texts | loss | step | study | draft | quantized | pair | pipeline) ;;
        *)
            echo "error: no part $part; there are texts, loss, step, study, draft, quantized, pair and pipeline" >&2
            exit 2
            ;;
    esac
done
for part; do "$part"; done
