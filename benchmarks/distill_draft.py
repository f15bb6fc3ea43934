"""The draft of chapter 4 learns from the model that it drafts for: how many drafts stand, before and after.

From new weights or from those that ship, for as many steps as fit into the time, or as its recipe has.
Acceptance Σ min(p, q) is measured on held-out text of each domain, with its standard error; then the greedy
speed-up of speculation, for every draft length, by the functions of speculative.py: both drafters in turns.

    python benchmarks/distill_draft.py --out OUT --text prose=… --blocks poetry=… --python code=installed
        [--teacher base] [--start new] [--minutes 6] [--divergence forward_kl] [--parts train,accept,speed]

The new draft lies in OUT/draft as a checkpoint, with its card. Figures: distilled_draft_acceptance_<domain>
(peer: before) and distilled_draft_speed_<domain>, for a teacher of one's own with its size behind them, as in
`_923m`. A line a stage and domain, "before" and "after", goes to results/raw/distill_draft_<device>.jsonl, as
`llmcourse.figures.draft_gain` reads them; all draft lengths that were tried go to draft_lengths. With
`--trial` no figure is recorded, and lines go to tried_drafts: to choose among losses, and with
`--hard-weight 1` to see what as many steps on the text alone would have brought. Started again, the
training goes on, and one that is done is not made anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import speculative
import torch
from distill_runs import (
    Texts,
    add_options,
    compiled,
    fidelity_row,
    fresh,
    load_teacher,
    step_s,
    steps_within,
    texts_of,
)
from record import record, record_raw, rounded

from llmcourse import pretrained
from llmcourse.arguments import Parser
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.distillation.losses import DIVERGENCES, Response
from llmcourse.distillation.quality import measure
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.students import GENTLER, STARTS, make_student, student_recipe
from llmcourse.distillation.train import distill
from llmcourse.distillation.written import write_student
from llmcourse.figures.draft_gain import STAGES
from llmcourse.model import Decoder
from llmcourse.speculative.engine import SpeculativeEngine
from llmcourse.training.family import write_whole

STEM, TRIED, LENGTHS = "distill_draft", "tried_drafts", "draft_lengths"  # none begins as another does
GAMMAS = "1,2,3,4,5,6,8"
PARTS = ("train", "accept", "speed")
CALLED = {"verse": "poetry"}  # prompts by the name of the text that is trained on


def parser() -> Parser:
    result = Parser(prog="distill_draft.py", description=__doc__.split("\n")[0])
    add_options(result)
    result.add_argument("--teacher", default="base", help="name or folder; the target of the drafts, too")
    result.add_argument("--student", default="draft")
    result.add_argument("--start", choices=STARTS, default="new", help="new weights, or those that ship")
    result.add_argument("--minutes", type=float, default=6.0, help="of the training")
    result.add_argument("--steps", type=int, help="instead of what fits into the time")
    result.add_argument("--batch-size", type=int, help="instead of the recipe's")
    result.add_argument("--length", type=int, help="tokens of a row, instead of the recipe's")
    result.add_argument("--divergence", choices=DIVERGENCES, default="forward_kl")
    result.add_argument("--temperature", type=float, default=1.0)
    result.add_argument("--hard-weight", type=float, default=0.0)
    result.add_argument("--beta", type=float, default=0.5, help="of jensen_shannon")
    result.add_argument("--own-text", type=float, default=0.0, help="share of batches that the draft writes")
    result.add_argument("--parts", default=",".join(PARTS))
    result.add_argument("--trial", action="store_true", help="keep raw lines alone, apart from those shown")
    result.add_argument("--gammas", default=GAMMAS, help="draft lengths that are timed")
    result.add_argument("--mix", help="shares of a batch as prose=1,poetry=1,code=1, instead of the recipe's")
    gentler = f"learning rates, of the recipe's (default: 1 for new weights, {GENTLER} for stored ones)"
    result.add_argument("--rates", type=float, help=gentler)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    parts = options.parts.split(",")
    device = torch.device(options.device)
    folder, teacher = load_teacher(options.teacher, device)
    texts = texts_of(options, folder)
    new = options.out / options.student
    if "train" in parts and not (new / "config.json").is_file():
        train(options, teacher, texts)
    drafters = {
        stage: pretrained.load(where, device=device, dtype=teacher.dtype).model
        for stage, where in zip(STAGES, (options.student, new), strict=True)
    }
    if "accept" in parts:
        report_acceptance(options, drafters, teacher, texts)
    if "speed" in parts:
        report_speed(options, drafters, teacher, folder)


def settings_of(options) -> Distillation:
    recipe = student_recipe(options.student, options.start, options.rates)
    asked = {"batch_size": options.batch_size, "sequence_length": options.length, "steps": options.steps}
    changes = {name: value for name, value in asked.items() if value is not None}
    if options.mix:
        shares = (part.split("=") for part in options.mix.split(","))
        changes["mix"] = {name: float(share) for name, share in shares}
    recipe = replace(recipe, **changes)
    recipe = replace(recipe, warmup=max(1, min(recipe.warmup, recipe.steps // 10)))
    response = Response(options.divergence, options.temperature, options.beta, options.hard_weight)
    return Distillation(recipe, response, own_text=options.own_text)


def train(options, teacher: Decoder, texts: Texts) -> None:
    """To OUT/<student>; the number of steps is kept, so that a run which goes on is the same."""
    began, note = time.monotonic(), options.out / "steps.json"
    distillation = settings_of(options)
    make = lambda: make_student(options.student, options.start, distillation.recipe, teacher.device)  # noqa: E731
    if note.is_file():
        steps = json.loads(note.read_text(encoding="utf-8"))
    elif options.steps is not None:
        steps = options.steps
    else:
        times = step_s(distillation, make(), teacher, texts.domains, compile_model=compiled(options))
        each_s = sum(times) / len(times)
        left_s = options.minutes * 60 - (time.monotonic() - began)
        steps = steps_within(max(left_s, 1.0) * 0.95, each_s, distillation.recipe.steps)
        print(f"{each_s * 1e3:.2f} ms a step: {steps} steps", flush=True)
    write_whole(note, json.dumps(steps))
    recipe = distillation.recipe
    recipe = replace(recipe, steps=steps, warmup=max(1, min(recipe.warmup, steps // 10)))
    distillation = replace(distillation, recipe=recipe)
    student, name = make(), options.student
    records = {"records": options.out / f"{name}.jsonl", "compiled": compiled(options)}
    fresh()
    distill(distillation, student, teacher, texts.domains, options.out / f"{name}.pt", **records)
    taught_by = Path(options.teacher).name
    write_student(
        distillation, student, teacher, taught_by, texts.corpus, texts.counts, texts.work, options.out
    )


def report_acceptance(options, drafters: dict[str, Decoder], teacher: Decoder, texts: Texts) -> None:
    """By domain, on the same windows before and after."""
    window, stem = {"length": options.window, "max_windows": options.windows}, stem_of(options)
    found = {name: measure(drafter, teacher, texts.held_out, **window) for name, drafter in drafters.items()}
    for before, after in zip(*found.values(), strict=True):
        for stage, each in zip(STAGES, (before, after), strict=True):
            record_raw(stem, teacher.device, stage=stage, **shared(options), **fidelity_row(each))
        if options.trial:
            continue
        record(
            f"distilled_draft_acceptance_{after.domain}{ending(options, teacher)}",
            after.acceptance.mean,
            "share of drafts that stand",
            limit=1.0,
            limit_name="the target's own distributions",
            peer="the draft before",
            peer_value=before.acceptance.mean,
            device=teacher.device,
            gain=rounded(after.acceptance.mean - before.acceptance.mean),
            acceptance_error=rounded(after.acceptance.error),
            peer_error=rounded(before.acceptance.error),
            nats=rounded(after.nats.mean),
            peer_nats=rounded(before.nats.mean),
            **shared(options),
        )


def speed_row(options, stage: str, domain: str, race: speculative.Race, names) -> dict[str, object]:
    row = speculative.described(race, names) | {"speed_up": rounded(race.speed_up)}
    return shared(options) | {"stage": stage, "domain": domain} | row


def stem_of(options) -> str:
    return TRIED if options.trial else STEM


def ending(options, teacher: Decoder) -> str:
    """Of the names of figures: none for an embedded teacher, otherwise its size."""
    if options.teacher in pretrained.embedded_names():
        return ""
    return f"_{round(teacher.num_parameters / 1e6)}m"


def shared(options) -> dict[str, object]:
    card = json.loads((options.out / f"{options.student}.json").read_text(encoding="utf-8"))["settings"]
    how = ("divergence", "temperature", "hard_weight", "own_text")
    how += ("steps", "batch_size", "sequence_length", "matrix_lr", "mix")
    named = {"teacher": Path(options.teacher).name, "student": options.student, "start": options.start}
    return named | {name: card.get(name) for name in how}


def report_speed(options, drafters: dict[str, Decoder], target: Decoder, folder: Path) -> None:
    """The draft length is chosen on a quarter of the prompts, for each drafter; the others are timed."""
    tokenizer = pretrained.read_tokenizer(folder, target.config.vocab_size)
    plain = DecodeEngine(target)
    gammas = [int(gamma) for gamma in options.gammas.split(",")]
    names = speculative.label(options.teacher, target), f"{options.student}, distilled"
    for name, openings in speculative.DOMAINS.items():
        domain = CALLED.get(name, name)
        texts = [tokenizer.encode("<|endoftext|>" + text) for text in openings()]
        best = {}
        for stage, drafter in drafters.items():
            engines = [SpeculativeEngine(target, drafter, draft_length=gamma) for gamma in gammas]
            tried = [
                speculative.race(plain, engine, [[text] for text in texts[::4]], 0.0) for engine in engines
            ]
            for each in tried:
                record_raw(LENGTHS, target.device, **speed_row(options, stage, domain, each, names))
            fastest = max(range(len(tried)), key=lambda number: tried[number].speed_up)
            others = [[text] for number, text in enumerate(texts) if number % 4]
            best[stage] = speculative.race(plain, engines[fastest], others, 0.0)
            row = speed_row(options, stage, domain, best[stage], names)
            record_raw(stem_of(options), target.device, **row)
        if options.trial:
            continue
        before, after = best["before"], best["after"]
        record(
            f"distilled_draft_speed_{domain}{ending(options, target)}",
            after.speed_up,
            "speed-up",
            limit=after.predicted(),
            limit_name="theory from the α, c and v measured here",
            peer="the draft before",
            peer_value=before.speed_up,
            spread=after.spread,
            device=target.device,
            alpha_before=rounded(before.terms()["alpha"]),
            gamma_before=before.gamma,
            **speculative.described(after, names),
        )


if __name__ == "__main__":
    main()
