"""02.predict_tokens: tokens a second from shapes, scored on how close they come to what was measured."""

from __future__ import annotations

import random
from collections.abc import Mapping

from llmcourse.grading.compare import Near
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.exercises.roofline import runs
from llmcourse.grading.exercises.roofline.step import step_times
from llmcourse.grading.rules import LIBRARIES, Forbid

ASKS = r"""
How fast does a model decode? Predict it before anybody runs it: from the model's shapes, the two ceilings of
the machine, and one more number. An engine starts operations one after another, and every start costs a
moment in which neither bytes nor FLOPs flow; small models spend most of their time so.

Write `predict_tokens(model, batch, context, number_bytes, machine)`.

- `model`: a dict of the ints `layers`, `hidden` ($H$), `heads` ($N$), `kv_heads` ($N_{kv}$), `head_dim`
  ($D$), `mlp` ($H'$) and `vocab` ($V$). A layer has the seven matrices of exercise 02.layer_flops; after the
  last one, an output matrix $H \times V$ makes the logits. Of the embedding a step reads a row a token: leave
  it out.
- `batch`: rows, each with one new token. `context`: keys that each of them looks at.
- `number_bytes`: of a weight and of a number in the cache.
- `machine`: a dict of `bytes_per_s`, `flops_per_s`, both in plain units, `starts`, the operations that are
  started in a step, and `start_s`, the seconds that each start costs.
- returns the tokens a second of all rows together, a number.

A step takes as long as its bytes or its FLOPs, whichever takes longer over the whole step, and all the starts
on top. (Chapter 2 takes the longer of the two for each operation, and adds up: more exact, and here within a
few per cent of the same.)

**The score is your distance from the measurement.** Every case counts, the one that is farthest off decides:
within 12 % all points, within 25 % half of them, beyond that none. Cases named after a model are runs on an
H200, in bf16, by early versions of the engine of chapter 2, whose kernels all start alike; what a start costs
was measured on *other* runs of the same version. There are three: in *one kernel after another* each
operation waits until the one before has ended; where *kernels overlapped* it is started before that, so that
part of its start costs no time; with *matrices by cuBLAS* the vendor's library multiplies, and what the other
two do in the same kernel, such as a norm, is a kernel of its own. The other cases are machines and models
that do not exist, where the three times above are the truth. You need not count what is small: is the weight
of a norm ever 12 % of anything?

```python
>>> tiny = dict(layers=1, hidden=2, heads=1, kv_heads=1, head_dim=2, mlp=3, vocab=5)     # 44 weights
>>> machine = dict(bytes_per_s=100.0, flops_per_s=1e6, starts=4, start_s=0.1)
>>> predict_tokens(tiny, 1, 3, 2, machine)          # 44 + 12 numbers: 1.12 s, and 0.4 s of starts
0.6578947368421053
```
"""

FINISHED = ("predict_step", "predict_all", "model_costs", "layer_costs")  # of the course's own package

HINTS = (
    "Count the numbers that one step has to read: all weights once, and the keys and values of every row. "
    "Print how much of the time each of the three parts takes: which one is far from what you thought?",
    "weights = layers · (H · (N + 2 N_kv) · D + N · D · H + 3 · H · H') + H · V. The cache has batch · "
    "context · layers · 2 · N_kv · D numbers.",
    "time = max(bytes / bytes_per_s, flops / flops_per_s) + starts · start_s, with 2 · batch · weights "
    "FLOPs and those of attention. A step makes batch tokens.",
)

SMALL = (
    "Its bytes take less than half of the time. The starts take the rest: all of them, each with its start_s."
)
BATCH = "A batch reads the weights once for all rows, and makes a token in each row."
HINTS_AT = {
    **{run.label: SMALL for run in runs.RUNS if run.model == "Qwen3-0.6B"},
    **{run.label: BATCH for run in runs.RUNS if run.batch > 1},
    "a large vocabulary": (
        "Here most of the weights lie behind the last layer, in the output matrix: H · V numbers, read once "
        "a step as all the others."
    ),
    "long texts": "Here the cache is most of what is read: every row's own, in the key/value heads alone.",
    "bound by arithmetic": (
        "The FLOPs of the whole step take longer than its bytes here. The longer time counts, not the sum."
    ),
}


def predict_tokens(
    model: Mapping[str, int],
    batch: int,
    context: int,
    number_bytes: float | int,
    machine: Mapping[str, float | int],
) -> float:
    """Rows over the longer of two times plus the starts."""
    times = step_times(model, batch, context, number_bytes, machine["bytes_per_s"], machine["flops_per_s"])
    return batch / (max(times) + machine["starts"] * machine["start_s"])


def cases(rng: random.Random) -> list[Case]:
    """Every run, so that the points do not hang on which of them a seed draws, and three that it draws."""
    measured = []
    for run in runs.RUNS:
        arguments = {"model": dict(runs.MODELS[run.model]), "batch": run.batch, "context": run.context}
        arguments |= {"number_bytes": 2, "machine": runs.machine_of(run)}
        measured.append(Case(arguments, run.label, measured=run.tokens_per_s))
    return [*measured, _large_vocabulary(rng), _long_texts(rng), _arithmetic(rng)]


def _model(rng, groups):
    kv_heads, head_dim, layers = rng.choice((4, 6, 8)), rng.choice((64, 96, 128)), rng.randint(16, 40)
    hidden = kv_heads * groups * head_dim
    model = {"layers": layers, "hidden": hidden, "heads": kv_heads * groups, "kv_heads": kv_heads}
    model |= {"head_dim": head_dim, "mlp": 128 * rng.randint(hidden // 64, hidden // 32)}
    return model | {"vocab": 1000 * rng.randint(20, 120)}


def _machine(rng, seconds, **rates):
    """With starts that take a twentieth of so many seconds."""
    starts = rng.randint(80, 300)
    return rates | {"starts": starts, "start_s": seconds / 20 / starts}


def _large_vocabulary(rng):
    """Layers so few that the output matrix is most of the weights."""
    model = _model(rng, 2) | {"layers": rng.randint(2, 4), "vocab": 1000 * rng.randint(200, 260)}
    batch, context, number_bytes = rng.randint(1, 4), rng.randint(100, 300), rng.choice((1, 2))
    rates = {"bytes_per_s": rng.uniform(3e11, 8e12)}
    rates |= {"flops_per_s": rates["bytes_per_s"] * rng.uniform(100, 300)}
    seconds, _ = step_times(model, batch, context, number_bytes, **rates)
    arguments = {"model": model, "batch": batch, "context": context, "number_bytes": number_bytes}
    return Case(arguments | {"machine": _machine(rng, seconds, **rates)}, "a large vocabulary")


def _long_texts(rng):
    """Texts so long that the cache is several times the weights."""
    model, batch, number_bytes = _model(rng, rng.choice((4, 6, 8))), rng.randint(3, 12), rng.choice((1, 2))
    weights_s, _ = step_times(model, batch, 0, number_bytes, 1.0, 1.0)
    all_s, _ = step_times(model, batch, 1, number_bytes, 1.0, 1.0)
    context = round(rng.uniform(3, 6) * weights_s / (all_s - weights_s))
    rates = {"bytes_per_s": rng.uniform(3e11, 8e12)}
    rates |= {"flops_per_s": rates["bytes_per_s"] * rng.uniform(100, 300)}
    seconds, _ = step_times(model, batch, context, number_bytes, **rates)
    arguments = {"model": model, "batch": batch, "context": context, "number_bytes": number_bytes}
    return Case(arguments | {"machine": _machine(rng, seconds, **rates)}, "long texts")


def _arithmetic(rng):
    """A peak so low that FLOPs take half as long again as bytes.

    Nearly all bytes are weights: of caches or activations, whose own operations are bound by memory, there
    are so few that whoever adds up the longer times of all operations comes to the same.
    """
    model, batch, context = _model(rng, 4), rng.randint(16, 32), rng.randint(4, 12)
    number_bytes, bytes_per_s = rng.choice((1, 2)), rng.uniform(3e11, 8e12)
    bytes_s, all_flops = step_times(model, batch, context, number_bytes, bytes_per_s, 1.0)
    seconds = rng.uniform(1.4, 1.7) * bytes_s
    machine = _machine(rng, seconds, bytes_per_s=bytes_per_s, flops_per_s=all_flops / seconds)
    arguments = {"model": model, "batch": batch, "context": context, "number_bytes": number_bytes}
    return Case(arguments | {"machine": machine}, "bound by arithmetic")


def _changed(*, model=None, machine=None, number_bytes=None, context=None):
    """An answer that is right but for parts of its arguments."""

    def answer(**given):
        given["model"] = given["model"] | (model(given["model"]) if model else {})
        given["machine"] = given["machine"] | (machine or {})
        given["number_bytes"] = number_bytes or given["number_bytes"]
        given["context"] = given["context"] if context is None else context
        return predict_tokens(**given)

    return answer


_fp32 = _changed(number_bytes=4)
_no_starts = _changed(machine={"start_s": 0.0})
_one_start = _changed(machine={"starts": 1})
_no_cache = _changed(context=0)
_no_output_matrix = _changed(model=lambda model: {"vocab": 0})
_no_arithmetic = _changed(machine={"flops_per_s": float("inf")})
# Attention of so many heads costs the same bytes, and the wider matrices hardly matter beside a long text.
_all_heads_cached = _changed(model=lambda model: {"kv_heads": model["heads"]})


def _seconds(model, batch, context, number_bytes, machine):
    return batch / predict_tokens(model, batch, context, number_bytes, machine)


def _one_row(model, batch, context, number_bytes, machine):
    return predict_tokens(model, batch, context, number_bytes, machine) / batch


def _weights_for_each_row(model, batch, context, number_bytes, machine):
    return predict_tokens(model, 1, context, number_bytes, machine)


def _adds(model, batch, context, number_bytes, machine):
    times = step_times(model, batch, context, number_bytes, machine["bytes_per_s"], machine["flops_per_s"])
    return batch / (sum(times) + machine["starts"] * machine["start_s"])


def _first(wanted):
    return next(run for run in runs.RUNS if wanted(run))


LARGE_RUN = runs.RUNS[0]
SMALL_RUN = _first(lambda run: run.model == "Qwen3-0.6B")
BATCH_RUN = _first(lambda run: run.batch > 1)

EXERCISE = Exercise(
    name="02.predict_tokens",
    function="predict_tokens",
    title="Predict, then measure",
    points=10,
    minutes=30,
    level=5,
    asks=ASKS,
    signature="predict_tokens(model, batch, context, number_bytes, machine)",
    cases=cases,
    reference=predict_tokens,
    comparison=Near(0.12, partly=((0.25, 0.5),)),
    rules=(Forbid(names=(*LIBRARIES, *FINISHED)),),
    hints=HINTS,
    hints_at=HINTS_AT,
    mutants=(
        Mutant("takes all numbers for fp32", _fp32, LARGE_RUN.label),
        Mutant("returns seconds", _seconds, LARGE_RUN.label),
        Mutant("forgets the starts", _no_starts, SMALL_RUN.label),
        Mutant("counts one start", _one_start, SMALL_RUN.label),
        Mutant("counts the tokens of one row", _one_row, BATCH_RUN.label),
        Mutant("reads the weights again for each row", _weights_for_each_row, BATCH_RUN.label),
        Mutant("forgets the output matrix", _no_output_matrix, "a large vocabulary"),
        Mutant("forgets the cache", _no_cache, "long texts"),
        Mutant("caches all query heads", _all_heads_cached, "long texts"),
        Mutant("forgets the arithmetic", _no_arithmetic, "bound by arithmetic"),
        Mutant("adds up bytes and arithmetic", _adds, "bound by arithmetic"),
    ),
)
