#!/bin/sh
# What the second half of chapter 4 shows as recorded: trains the models that it takes, then times them.
#
#   benchmarks/chapter_04.sh TEXTS OUT [PART …]          parts: medusa exits classifier kernels; all if left out
#
# TEXTS holds prose.txt and poetry.txt (poems between blank lines), or either as .xz; code is this machine's own
# Python. One H200 takes some ten minutes for medusa, seven each for exits and classifier, one for kernels, and
# with two of them two parts can run side by side (CUDA_VISIBLE_DEVICES). What is trained stays in OUT, and is
# taken from there when the same command runs again; lines are added to benchmarks/results.
set -eu
. "$(dirname -- "$0")/with_texts.sh"

target() { # a model of 923 M parameters, in minutes, into a folder that has none yet
    [ -e "$out/$1/target/config.json" ] ||
        with_texts "$python" "$root/benchmarks/train_target.py" --out "$out/$1" --shape wide --minutes "$2" \
            --tune-minutes 0
}

medusa() {
    target medusa 5
    with_texts "$python" -m llmcourse.training.medusa --model "$out/medusa/target" --out "$out/medusa/heads" \
        --minutes 2 --own-text 2000000
    "$python" "$root/benchmarks/medusa.py" --model "$out/medusa/target" --heads "$out/medusa/heads"
}

exits() { # one exit, drawn to what the last layer says from the first step on, on a model that knows nothing yet
    target exits 0.01
    with_texts "$python" -m llmcourse.training.exits --model "$out/exits/target" --out "$out/exits/heads" \
        --minutes 5.5 --layer-dropout 0 --exits 1 --objective last --exit-weight 1 --rate 0.002 --fit 0
    "$python" "$root/benchmarks/early_exit.py" --model "$out/exits/heads/backbone" --heads "$out/exits/heads" \
        --layers 1 --gammas 1,2,3,4
}

classifier() { # the tasks side by side, all from one encoder (by xargs: what `&` starts ignores Ctrl-C)
    with_texts "$python" -m llmcourse.training.classifier --out "$out/classifier" --encoder-only
    printf '%s\n' following author docstring |
        with_texts xargs -P 3 -I {} "$python" -m llmcourse.training.classifier --out "$out/classifier" --tasks {}
    with_texts "$python" "$root/benchmarks/exit_table.py" --out "$out/classifier"
}

kernels() {
    "$python" "$root/benchmarks/append_variants.py" --tokens 64,32,16
    "$python" "$root/benchmarks/few_rows_variants.py" --parts rows32,rows64
}

[ $# -gt 0 ] || set -- medusa exits classifier kernels
for part; do
    case $part in
        medusa | exits | classifier | kernels) ;;
        *) echo "error: no part $part; there are medusa, exits, classifier and kernels" >&2; exit 2 ;;
    esac
done
for part; do "$part"; done
