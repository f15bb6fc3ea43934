"""Students of two sizes, trained in five ways on the same text: what each way gives, over seeds.

    scratch    the text's tokens alone           response   the teacher's distribution
    feature    tokens, and the teacher's layers  both       distribution and layers
    on_policy  the distribution, on batches of which half are written by the student

All runs have as many tokens; those of one seed begin with the same weights and read the same batches (but for
those which a student writes). Rates are those of the student's recipe, which was made for the text alone: no
way was tuned for itself. How many steps there are is found once, by the speed of all kinds, so
that all runs together fit into `--minutes`; it is kept in OUT/plan.json, and other processes take it from
there:

    python benchmarks/distill_study.py --out OUT TEXT… --minutes 12 --workers 2 --plan-only
    CUDA_VISIBLE_DEVICES=0 python benchmarks/distill_study.py --out OUT TEXT… --share 0/2
    CUDA_VISIBLE_DEVICES=1 python benchmarks/distill_study.py --out OUT TEXT… --share 1/2

where TEXT is `--text prose=prose.txt --blocks poetry=poems.txt --python code=installed`. One process does
all of it without these options. Seeds come in their order, so that what is there when the time is up can be
compared; started again, a process goes on where it was. A line a run and domain goes to
results/raw/distill_study_<device>.jsonl at once; `--table` prints what lies there, compared seed by seed.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import record
import torch
from distill_runs import (
    Clock,
    Texts,
    add_options,
    compiled,
    fresh,
    in_teachers_dtype,
    load_teacher,
    measured,
    remove,
    step_s,
    steps_within,
    texts_of,
)

from llmcourse.arguments import Parser
from llmcourse.distillation.feature_loss import FeatureWeights
from llmcourse.distillation.losses import DIVERGENCES, Response
from llmcourse.distillation.paired import paired
from llmcourse.distillation.recorded import KINDS, studies
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.students import STARTS, make_student, student_recipe
from llmcourse.distillation.train import distill
from llmcourse.model import Decoder
from llmcourse.training.family import write_whole

STEM = "distill_study"
TIMED_AS = {"scratch": "response", "feature": "both"}  # to spare time: what takes longer, and holds the same
USED = 0.8  # of the time: the rest is for what takes longer than it did alone
WARM = 0.5  # of what a first run takes besides its steps: later ones find on the disk what was compiled
ASKED = (  # what one study has one of
    "teacher",
    "students",
    "kinds",
    "seeds",
    "start",
    "batch_size",
    "length",
    "temperature",
    "hard_weight",
    "own_divergence",
)
QUANTITIES = ("nats", "kl", "agreement", "acceptance", "calibration_error", "own_kl", "own_teacher_nats")


@dataclass(frozen=True)
class Run:
    """One student."""

    student: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.student}-{self.kind}-{self.seed}"


def parser() -> Parser:
    result = Parser(prog="distill_study.py", description=__doc__.split("\n")[0])
    add_options(result)
    result.add_argument("--teacher", default="base")
    result.add_argument("--students", nargs="+", default=["draft", "small"], help="members of the family")
    result.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    result.add_argument("--seeds", type=int, default=3)
    result.add_argument("--start", choices=STARTS, default="new", help="new weights, or those that ship")
    result.add_argument("--batch-size", type=int, default=64)
    result.add_argument("--length", type=int, default=256, help="tokens of a row")
    result.add_argument("--minutes", type=float, default=12.0, help="for all runs, by every worker")
    result.add_argument("--steps", type=int, help="instead of what fits into the time")
    result.add_argument("--workers", type=int, default=1, help="processes that share the runs")
    result.add_argument("--share", default="0/1", help="which runs are this process's: NUMBER/WORKERS")
    result.add_argument("--plan-only", action="store_true", help="find the number of steps, and end")
    result.add_argument("--temperature", type=float, default=1.0)
    result.add_argument("--hard-weight", type=float, default=0.0, help="share of the text's tokens")
    result.add_argument("--own-divergence", choices=DIVERGENCES, default="forward_kl", help="on-policy's")
    result.add_argument("--table", action="store_true", help="print what was recorded, and end")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.table:
        return table()
    started, device = time.monotonic(), torch.device(options.device)
    folder, teacher = load_teacher(options.teacher, device)
    texts = texts_of(options, folder)
    runs = runs_of(options)
    plan = plan_of(options, runs, teacher, texts)
    print(plan, flush=True)
    if options.plan_only:
        return
    clock, broken = Clock(options.minutes - (time.monotonic() - started) / 60), []
    for run in share_of(runs, options.share):
        try:
            done = train(run, options, plan, teacher, texts, clock)
        except FloatingPointError as error:  # the others are none the worse for it
            print(error, flush=True)
            broken.append(run.name)
            continue
        if not done:
            print(f"the time is up before {run.name}; start again to go on", flush=True)
            break
    if broken:
        raise SystemExit(f"error: no student came of {', '.join(broken)}")


def runs_of(options) -> list[Run]:
    """Seed by seed, so that what is there can be compared; the slower students of a seed come first."""
    parts = itertools.product(range(options.seeds), reversed(options.students), options.kinds)
    return [Run(student, kind, seed) for seed, student, kind in parts]


def share_of(runs: Sequence[Run], share: str) -> Sequence[Run]:
    """Every so many of them: "0/2" and "1/2" are all.

    Raises:
        ValueError: a number that is none of the workers'.
    """
    number, workers = map(int, share.split("/"))
    if not 0 <= number < workers:
        raise ValueError(f"share must be NUMBER/WORKERS with a number in [0, {workers}), got {share!r}")
    return runs[number::workers]


def settings_of(run: Run, options, steps: int) -> Distillation:
    """What differs between kinds, and nothing else does."""
    recipe = student_recipe(run.student, options.start)
    sizes = {"batch_size": options.batch_size, "sequence_length": options.length}
    recipe = replace(recipe, name=run.name, steps=steps, seed=run.seed, warmup=max(1, steps // 20), **sizes)
    response = Response(temperature=options.temperature, hard_weight=options.hard_weight)
    own = replace(response, divergence=options.own_divergence)
    parts = {
        "scratch": {"response": None},
        "response": {"response": response},
        "feature": {"response": None, "features": FeatureWeights()},
        "both": {"response": response, "features": FeatureWeights()},
        "on_policy": {"response": own, "own_text": 0.5},
    }
    return Distillation(recipe, **parts[run.kind])


def plan_of(options, runs: Sequence[Run], teacher: Decoder, texts: Texts) -> dict[str, object]:
    """Steps of each run: as they were found, or as they are found now."""
    path = options.out / "plan.json"
    asked = {name: getattr(options, name) for name in ASKED}
    if path.is_file():
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["asked"] != asked:
            raise SystemExit(f"error: {path} is of another study, {plan['asked']}; take another folder")
        return plan
    if options.steps is not None:
        plan = {"asked": asked, "steps": options.steps, "step_s": {}}
    else:
        plan = {"asked": asked} | found_plan(options, runs, teacher, texts)
    write_whole(path, json.dumps(plan))
    return plan


def found_plan(options, runs: Sequence[Run], teacher: Decoder, texts: Texts) -> dict[str, object]:
    """By the speed of the kinds, and by what a run takes besides: what is compiled, and what is measured."""
    each_s, besides_s = {}, 0.0
    kinds = dict.fromkeys(TIMED_AS.get(kind, kind) for kind in options.kinds)
    for run in (Run(student, kind, 0) for student in options.students for kind in kinds):
        began = time.monotonic()
        distillation = settings_of(run, options, 100)
        student = make_student(run.student, options.start, distillation.recipe, teacher.device)
        lent = teacher if distillation.needs_teacher else None
        times = step_s(distillation, student, lent, texts.domains, compile_model=compiled(options))
        each_s[f"{run.student}-{run.kind}"] = sum(times) / len(times)
        measured(in_teachers_dtype(student, teacher), teacher, texts.held_out, options)
        besides_s += time.monotonic() - began
        print(f"{run.name}: {each_s[f'{run.student}-{run.kind}'] * 1e3:.2f} ms a step", flush=True)
    all_s = sum(each_s[f"{run.student}-{TIMED_AS.get(run.kind, run.kind)}"] for run in runs)
    besides_s *= WARM * len(runs) / len(each_s)
    steps = steps_within(max(options.minutes * 60 * USED * options.workers - besides_s, 1.0), all_s)
    return {"steps": steps, "step_s": each_s}


def train(run: Run, options, plan: dict, teacher: Decoder, texts: Texts, clock: Clock) -> bool:
    """Trains and measures a student, or finds that it was; False where the time was up first."""
    done = options.out / f"{run.name}.done.json"
    if done.is_file():
        return True
    device = teacher.device
    distillation = settings_of(run, options, plan["steps"])
    student = make_student(run.student, options.start, distillation.recipe, device)
    lent = teacher if distillation.needs_teacher else None
    state, records = (options.out / f"{run.name}{ending}" for ending in (".pt", ".jsonl"))
    limit_s = clock.left_s
    if limit_s <= 0:
        return False
    fresh()
    how = {"records": records, "time_limit_s": limit_s, "compiled": compiled(options)}
    if not distill(distillation, student, lent, texts.domains, state, **how):
        return False
    rows = measured(in_teachers_dtype(student, teacher), teacher, texts.held_out, options)
    spent = json.loads(records.read_text(encoding="utf-8").splitlines()[-1])
    shared = {
        **asdict(run),
        "teacher": Path(options.teacher).name,
        "start": options.start,
        "steps": plan["steps"],
        "batch_size": options.batch_size,
        "length": options.length,
        "tokens": distillation.recipe.tokens,
        "parameters": student.num_parameters,
        "temperature": options.temperature,
        "hard_weight": options.hard_weight,
        "own_divergence": options.own_divergence if run.kind == "on_policy" else None,
        "train_s": spent["seconds"],
        "last_loss": spent["loss"],
    }
    for row in rows:
        record.record_raw(STEM, device, **shared, **row)
        print(f"{run.name}, {row['domain']}: {row['nats']} nats, KL {row['kl']}", flush=True)
    write_whole(done, json.dumps(rows))
    remove(state)
    return True


def table(folder: Path | None = None) -> None:
    """Every study that was recorded, kinds beside scratch, seed by seed."""
    for path in sorted((folder or record.RESULTS / "raw").glob(f"{STEM}_*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for study, chosen in studies(lines).items():
            about = ", ".join(f"{name} {value}" for name, value in study if value is not None)
            print(f"\n{path.stem}: {about}")
            for quantity in QUANTITIES:
                print(f"\n{quantity}")
                print_paired(chosen, quantity)


def print_paired(rows: Sequence[dict], quantity: str) -> None:
    """Or why nothing can be compared: a study that has just begun has a seed or none."""
    try:
        for found in paired(rows, quantity):
            far = "" if math.isinf(found.errors) else f" ({found.errors:+.1f} standard errors)"
            print(f"  {found}{far}")
    except ValueError as error:
        print(f"  {error}")


if __name__ == "__main__":
    main()
