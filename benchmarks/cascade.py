"""What the cascade of chapter 4 is drawn from: the embedded family's answers to two tasks, and their cost.

Every model answers every question once; the chapter trains its judges and chooses its thresholds on what is
recorded here, in `results/raw/cascade_<device>.json.xz`. Seconds are those of single questions, one after the
other, the models in turns.

    python benchmarks/cascade.py
"""

from __future__ import annotations

import argparse
import json
import lzma
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from record import RESULTS, commit, rounded, words

from llmcourse import hardware, pretrained
from llmcourse.costs import Precision
from llmcourse.speculative.answered import Answered
from llmcourse.speculative.answers import Answer, ModelAnswers, answer_cost
from llmcourse.speculative.tasks import (
    Question,
    code_lines,
    quatrains,
    split,
    standard_library,
    write_openings,
)

NAMES = ("draft", "small", "base")
MAX_NEW_TOKENS = {"code": 12, "verse": 16}
TIMED = 24  # questions of each task
FP32 = Precision("fp32", "fp32")


def questions(task: str, family: dict[str, pretrained.Pretrained], count: int) -> list[Question]:
    """Those of a task, from all sides of the split, in an order in which any beginning is a fair sample."""
    model, tokenizer = family[NAMES[-1]]
    if task == "code":
        found = code_lines(standard_library(), tokenizer)
    else:
        found = quatrains(write_openings(model, tokenizer, 2 * count), tokenizer)
    sides = split(found).values()
    shuffled = [question for side in sides for question in side]
    order = torch.randperm(len(shuffled), generator=torch.Generator().manual_seed(0)).tolist()
    return [shuffled[index] for index in order[:count]]


def seconds(asked: Sequence[Question], models: dict[str, ModelAnswers]) -> dict[str, list[float]]:
    """Of single answers, each question put to all models before the next."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for index, question in enumerate(asked):
        for name, model in models.items():
            start = time.perf_counter()
            model([question])
            if index >= 2:  # the first warm up
                times[name].append(time.perf_counter() - start)
    return times


def report(task: str, family: dict[str, pretrained.Pretrained], count: int) -> dict[str, Any]:
    """Asks, times, and prints how many answers were right."""
    asked = questions(task, family, count)
    models = {
        name: ModelAnswers(*family[name], max_new_tokens=MAX_NEW_TOKENS[task], batch=64) for name in NAMES
    }
    answers: dict[str, list[Answer]] = {}
    for name, model in models.items():
        start = time.perf_counter()
        answers[name] = model(asked)
        print(f"{task} {name}: {len(asked)} answers in {time.perf_counter() - start:.1f} s", flush=True)
    answered = Answered.of(asked, answers)
    timed = seconds(asked[: TIMED + 2], models)
    shares = answered.right.double().mean(0).tolist()
    rows = {}
    for name, share, lengths in zip(NAMES, shares, answered.mean_lengths(), strict=True):
        cost = answer_cost(family[name].model.config, *lengths, FP32)
        rows[name] = {
            "right": rounded(share),
            "prompt_tokens": lengths[0],
            "new_tokens": lengths[1],
            "flops": cost.flops,
            "traffic_bytes": cost.traffic_bytes,
            "time_s": rounded(statistics.median(timed[name])),
        }
        print(task, name, rows[name], flush=True)
    return {"models": rows, **answered.to_json()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1500, help="questions of each task (default: 1500)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as PyTorch chooses)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    family = {name: pretrained.load(name) for name in NAMES}
    fingerprint = hardware.fingerprint(torch.device("cpu"))
    content = {
        "device": fingerprint["device"],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "commit": commit(),
        "tasks": {task: report(task, family, arguments.count) for task in MAX_NEW_TOKENS},
    }
    path = RESULTS / "raw" / f"cascade_{words(fingerprint['device'], '_')}.json.xz"
    packed = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    path.write_bytes(lzma.compress(packed, preset=9))
    print(f"{path.stat().st_size / 1024:.0f} KiB in {path.name}")


if __name__ == "__main__":
    main()
