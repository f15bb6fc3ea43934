"""All exercises, by lab and by name."""

from __future__ import annotations

import difflib

from llmcourse.grading.exercise import Exercise
from llmcourse.grading.exercises.blockwise import block_decoding
from llmcourse.grading.exercises.decoding import (
    beam_search,
    contrastive,
    find_the_bug,
    greedy_loop,
    no_repeat_ngram,
    presence_frequency,
    repetition_penalty,
    softmax,
    top_k,
    top_p,
)
from llmcourse.grading.exercises.distillation import (
    calibration,
    kd_loss,
    mixed_loss,
    projection_loss,
    read_table,
    reverse_kl,
    soften,
    top_k_teacher,
    train_step,
)
from llmcourse.grading.exercises.early_exit import (
    entropy_exit,
    exit_threshold,
    patience_exit,
)
from llmcourse.grading.exercises.flash_attention import (
    causal_tile,
    online_softmax,
    tiled_attention,
    traffic,
    triton_softmax,
)
from llmcourse.grading.exercises.kv_cache import (
    cached_attention,
    cached_loop,
    rollback,
    visible,
    write_cache,
)
from llmcourse.grading.exercises.kv_cache import (
    find_the_bug as cache_bug,
)
from llmcourse.grading.exercises.medusa import (
    medusa_candidates,
    walk_tree,
)
from llmcourse.grading.exercises.quantization import (
    affine,
    clip_range,
    gptq,
    gptq_column,
    llm_int8,
    pack_int4,
    per_channel,
    triton_int8,
    unpack_int4,
)
from llmcourse.grading.exercises.roofline import (
    largest_batch,
    layer_flops,
    linear_costs,
    predict_tokens,
    ridge,
    turning_batch,
)
from llmcourse.grading.exercises.serving import (
    block_pool,
    continuous_batching,
)
from llmcourse.grading.exercises.serving import (
    find_the_bug as paged_bug,
)
from llmcourse.grading.exercises.speculative import (
    accept_drafts,
    cascade_threshold,
    look_up,
    residual,
    speculative_loop,
    speed_up,
)

CLOSE = 0.5  # how alike a name has to be to be suggested


LABS = {
    "01_decoding": (
        softmax.EXERCISE,
        greedy_loop.EXERCISE,
        top_k.EXERCISE,
        top_p.EXERCISE,
        repetition_penalty.EXERCISE,
        presence_frequency.EXERCISE,
        no_repeat_ngram.EXERCISE,
        beam_search.EXERCISE,
        contrastive.EXERCISE,
        find_the_bug.EXERCISE,
    ),
    "02_kv_cache_and_roofline": (
        linear_costs.EXERCISE,
        layer_flops.EXERCISE,
        ridge.EXERCISE,
        turning_batch.EXERCISE,
        largest_batch.EXERCISE,
        visible.EXERCISE,
        write_cache.EXERCISE,
        cached_attention.EXERCISE,
        cached_loop.EXERCISE,
        rollback.EXERCISE,
        cache_bug.EXERCISE,
        predict_tokens.EXERCISE,
    ),
    "03_flash_attention_and_batching": (
        traffic.EXERCISE,
        online_softmax.EXERCISE,
        tiled_attention.EXERCISE,
        causal_tile.EXERCISE,
        triton_softmax.EXERCISE,
        block_pool.EXERCISE,
        continuous_batching.EXERCISE,
        paged_bug.EXERCISE,
    ),
    "04_speculative_medusa_early_exit": (
        accept_drafts.EXERCISE,
        residual.EXERCISE,
        speed_up.EXERCISE,
        look_up.EXERCISE,
        speculative_loop.EXERCISE,
        cascade_threshold.EXERCISE,
        medusa_candidates.EXERCISE,
        walk_tree.EXERCISE,
        entropy_exit.EXERCISE,
        patience_exit.EXERCISE,
        exit_threshold.EXERCISE,
        block_decoding.EXERCISE,
    ),
    "05_quantization": (
        affine.EXERCISE,
        per_channel.EXERCISE,
        clip_range.EXERCISE,
        pack_int4.EXERCISE,
        unpack_int4.EXERCISE,
        gptq_column.EXERCISE,
        gptq.EXERCISE,
        llm_int8.EXERCISE,
        triton_int8.EXERCISE,
    ),
    "06_distillation": (
        soften.EXERCISE,
        kd_loss.EXERCISE,
        reverse_kl.EXERCISE,
        mixed_loss.EXERCISE,
        top_k_teacher.EXERCISE,
        projection_loss.EXERCISE,
        train_step.EXERCISE,
        calibration.EXERCISE,
        read_table.EXERCISE,
    ),
}


def labs() -> dict[str, tuple[Exercise, ...]]:
    """The exercises of each lab, in the order in which it asks them."""
    return dict(LABS)


def find(name: str) -> Exercise:
    """The exercise of this name.

    Raises:
        LookupError: there is none; names those that it resembles.
    """
    exercises = {exercise.name: exercise for lab in labs().values() for exercise in lab}
    if name in exercises:
        return exercises[name]
    short = {full.split(".")[1]: full for full in exercises}
    close = difflib.get_close_matches(name.lower(), [*exercises, *short], cutoff=CLOSE)
    close = list(dict.fromkeys(short.get(match, match) for match in close)) or list(exercises)
    raise LookupError(f"there is no exercise {name!r}; did you mean {' or '.join(close)}?")
