"""`python -m llmcourse.distillation`: a teacher and text in, a student out.

Two minutes:   python -m llmcourse.distillation --quick --teacher base --student draft --out distilled
One GPU:       python -m llmcourse.distillation --teacher base --student draft --objective both \\
                   --text prose=prose.txt --blocks poetry=poems.txt --python code=installed --out distilled
Several GPUs:  torchrun --nproc-per-node 4 -m llmcourse.distillation …

Stop it at any time and start it again with the same arguments: it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist

from llmcourse.distillation.options import distillation_of, parser, recipe_of
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.shards import whole_copy, world
from llmcourse.distillation.students import make_student
from llmcourse.distillation.text_at_hand import corpus_at_hand
from llmcourse.distillation.train import distill
from llmcourse.distillation.written import held_out_of, write_student
from llmcourse.model import Decoder
from llmcourse.pretrained import find_checkpoint, load
from llmcourse.training.backbone import prepare_for
from llmcourse.training.export import check_replaceable
from llmcourse.training.family import Corpus, work_folder
from llmcourse.training.options import exit_code, sources_of
from llmcourse.training.processes import leave, part_company, start_process


def corpus_of(options: argparse.Namespace) -> Corpus:
    """The text that the options name, or what there is at hand.

    Raises:
        ValueError, OSError: text that is not there, or an output folder that cannot be written.
    """
    sources = sources_of(options)
    if sources:
        return Corpus(sources, 0.01 if options.held_out is None else options.held_out)
    corpus = corpus_at_hand(work_folder(options.out))
    return corpus if options.held_out is None else Corpus(corpus.sources, options.held_out)


def train(options: argparse.Namespace, started: float) -> bool:
    """Text and teacher to a student; False when the time was up first.

    Raises:
        ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `distill`, and for what cannot be read.
    """
    try:
        device = start_process(options.device)
        folder = find_checkpoint(options.teacher)
        teacher, tokens = load(folder, device=device)
        with _FirstAlone():
            corpus = corpus_of(options)
        recipe = recipe_of(options, [source.name for source in corpus.sources])
        distillation = distillation_of(options, recipe, teacher.config)
        student = make_student(options.student, options.start, recipe, device, tokens)
        distillation.check_models(student, teacher)
        distillation.check_processes(world()[1])
        out, work = options.out / recipe.name, work_folder(options.out)
        check_replaceable(out)
        with _FirstAlone():
            counts, domains = prepare_for(folder, corpus, work, device)
        contexts = [model.config.max_position_embeddings for model in (student, teacher)]
        held_out_of(work, list(counts), contexts)
        if world()[0] == 0:
            print(_summary(options, distillation, student, teacher, device), flush=True)
        done = distill(
            distillation,
            student,
            teacher if distillation.needs_teacher else None,
            domains,
            work / f"{recipe.name}.pt",
            records=options.out / f"{recipe.name}.jsonl",
            cache=options.cache,
            time_limit_s=options.minutes * 60 - (time.monotonic() - started),
        )
        student = whole_copy(student)
        if done and world()[0] == 0:
            name = options.teacher
            write_student(distillation, student, teacher, name, corpus, counts, work, options.out)
        return done
    finally:
        part_company()


class _FirstAlone:
    """Lets the first process go before all others, which then find what it made."""

    def __enter__(self):
        if world()[0] > 0:
            dist.barrier()

    def __exit__(self, *exc):
        if world()[1] > 1 and world()[0] == 0:
            dist.barrier()


def _summary(
    options: argparse.Namespace,
    distillation: Distillation,
    student: Decoder,
    teacher: Decoder,
    device: torch.device,
) -> str:
    """What is about to happen, in two lines."""
    recipe = distillation.recipe
    taught = f"teacher {options.teacher} ({teacher.num_parameters / 1e6:.1f} million parameters) → "
    taught = taught if distillation.needs_teacher else ""
    size = f"{student.num_parameters / 1e6:.1f} million, {options.start} weights"
    return (
        f"{taught}student {recipe.name} ({size}), objective {options.objective}, on {device}\n"
        f"{recipe.steps:,} steps of {recipe.batch_size} × {recipe.sequence_length:,} tokens; "
        f"losses of each in {options.out / recipe.name}.jsonl"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns `exit_code`'s."""
    started = time.monotonic()
    options = parser(__doc__.split("\n")[0]).parse_args(argv)
    return exit_code(lambda: train(options, started))


if __name__ == "__main__":
    leave(main())
