#!/bin/sh
# What chapter 5 shows as recorded: times the kernels of few bits, and measures what each scheme costs models.
#
#   benchmarks/chapter_05.sh TEXTS OUT [PART …]   parts: linear decode w8a8 gptq quality; all if left out
#
# TEXTS holds prose.txt and poetry.txt (poems between blank lines), or either as .xz; code is this machine's own
# Python. One H200 takes some two minutes for each of linear, decode and gptq, three for w8a8, and sixteen for
# quality, which trains models of 411 and 923 M parameters first. With two of them two parts can run side by side
# (CUDA_VISIBLE_DEVICES). What is trained stays in OUT, and is taken from there when the same command runs
# again; lines are added to benchmarks/results.
set -eu
. "$(dirname -- "$0")/with_texts.sh"

linear() {
    "$python" "$root/benchmarks/linear_low_bit.py"
}

decode() {
    "$python" "$root/benchmarks/decode_low_bit.py"
}

w8a8() {
    "$python" "$root/benchmarks/linear_w8a8.py"
}

gptq() {
    "$python" "$root/benchmarks/gptq.py"
}

quality() { # of the embedded models, and of two that are larger
    for shape in narrow wide; do
        [ -e "$out/$shape/target/config.json" ] ||
            with_texts "$python" "$root/benchmarks/train_target.py" --out "$out/$shape" --shape "$shape" \
                --minutes 4 --tune-minutes 0
    done
    with_texts "$python" "$root/benchmarks/quantize_quality.py" draft small base "$out/narrow/target" \
        "$out/wide/target"
}

[ $# -gt 0 ] || set -- linear decode w8a8 gptq quality
for part; do
    case $part in
        linear | decode | w8a8 | gptq | quality) ;;
        *) echo "error: no part $part; there are linear, decode, w8a8, gptq and quality" >&2; exit 2 ;;
    esac
done
for part; do "$part"; done
