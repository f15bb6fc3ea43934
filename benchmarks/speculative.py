"""The speculative engine beside the decode engine: the same tokens, how much faster, and what theory says.

In one process, and in turns: whether greedy texts of both engines are the same, in fp32 on many prompts;
the speed-up over `DecodeEngine` by domain, greedy and sampled, for the draft length that was fastest on other
prompts, and for larger batches; and on a GPU what verifying 8 tokens takes beside a step of one token, with
Llama-3-8B's shapes and random weights in bfloat16; and the same pass over 8 tokens of several texts.

    python benchmarks/speculative.py [--target base] [--drafter draft] [--parts parity,speed,verify,texts]

A target trained for the purpose is named by its folder. Lines go to benchmarks/results/<device>.jsonl; times
of all draft lengths, and of verifying by other settings of the kernels, to its folder `raw`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from large_models import NEW, PROMPT, random_model, random_prompts
from record import record, record_raw, rounded

from llmcourse import hardware, pretrained, prompts, timing
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.engine.graphs import recorded
from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import KernelSettings, KernelStep, StepState
from llmcourse.decoding.engine.window import Window
from llmcourse.kernels.linear import AnyTile, best_linear_tile
from llmcourse.kernels.tiles import few_rows_tile, ring_rule
from llmcourse.kernels.tree_mask import TreeMask
from llmcourse.model import Decoder
from llmcourse.speculative import Tally, theory
from llmcourse.speculative.engine import SpeculativeEngine
from llmcourse.speculative.engine.stepping import SteppingEngine

DOMAINS = {
    "prose": lambda: list(prompts.PROSE),
    "verse": lambda: list(prompts.VERSE),
    "code": prompts.standard_library,
}
TOKENS = 256  # that are written and timed
PARITY_TOKENS, PARITY_BATCH = 64, 8
VERIFIED, ROUNDS, QUEUED = 8, 5, 20
TEXTS, FEW_LAYERS = (1, 2, 3, 4, 8, 16, 32), 4  # verified at once, by a model of a few large layers
SHAPES = ((6144, 4096, False), (4096, 4096, False), (14336, 4096, True), (4096, 14336, False))
SETTINGS = {
    "default": KernelSettings(),
    "no early launch": KernelSettings(pdl=False),
    "PyTorch's products": KernelSettings(few_rows=False),
    "tiles, copied by the threads": KernelSettings(
        tiles={shape: few_rows_tile(VERIFIED, shape[0], shape[2]) for shape in SHAPES}
    ),
    "rings by rule": KernelSettings(tiles={shape: ring_rule(VERIFIED, *shape) for shape in SHAPES}),
}


SLOWEST = "none: a batch is done when the slowest of its rows is, of which theory says nothing"


@dataclass(frozen=True)
class Race:
    """Both engines at the same prompts.

    Attributes:
        plain_s, ours_s: of each prompt or batch, until every row has its tokens.
        token_s: of decoding, a token.
        draft_s, verify_s: of a step's parts, alone.
        tokens_a_step: that a row gained, the mean.
    """

    gamma: int
    num_rows: int
    plain_s: list[float]
    ours_s: list[float]
    token_s: float
    draft_s: float
    verify_s: float
    tally: Tally
    tokens_a_step: float

    @property
    def speed_up(self) -> float:
        return sum(self.plain_s) / sum(self.ours_s)

    @property
    def spread(self) -> float:
        """Of the speed-ups of single prompts, which differ in what they let stand."""
        return timing.Timing(tuple(p / o for p, o in zip(self.plain_s, self.ours_s, strict=True))).spread

    def terms(self) -> dict[str, float]:
        """α, c and v, as theory takes them."""
        c, v = self.draft_s / self.gamma / self.token_s, self.verify_s / self.token_s
        return {"alpha": self.tally.rate, "c": c, "v": v}

    def predicted(self, *, constant: bool = False) -> float:
        """By theory; `constant` is v = 1, as if verifying took no longer than a step."""
        found = self.terms()
        v = theory.constant if constant else lambda _: found["v"]
        return theory.speed_up(found["alpha"], self.gamma, found["c"], v)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="base")
    parser.add_argument("--drafter", default="draft")
    parser.add_argument("--parts", default="parity,speed,verify,texts")
    parser.add_argument("--prompts", type=int, default=1000, help="of parity")
    parser.add_argument("--gammas", default="1,2,3,4,5,6,8")
    parser.add_argument("--batches", default="8,32", help="of code; may be empty")
    arguments = parser.parse_args()
    device, parts = hardware.default_device(), arguments.parts.split(",")
    names = (arguments.target, arguments.drafter)
    if "parity" in parts:
        report_parity(names, arguments.prompts, device)
    if "speed" in parts:
        gammas = [int(gamma) for gamma in arguments.gammas.split(",")]
        batches = [int(size) for size in arguments.batches.split(",") if size]
        report_speed(names, gammas, batches, device)
    if "verify" in parts and device.type == "cuda":
        report_verify(device)
    if "texts" in parts and device.type == "cuda":
        report_texts(device)


def load(names: Sequence[str], device: torch.device, dtype: torch.dtype) -> tuple[list[Decoder], Callable]:
    """The models, and how a text becomes tokens: each begins as documents did in training."""
    loaded = [pretrained.load(name, device=device, dtype=dtype) for name in names]
    tokenizer = loaded[0].tokenizer
    return [one.model for one in loaded], lambda text: tokenizer.encode("<|endoftext|>" + text)


def label(name: str, model: Decoder) -> str:
    """An embedded model's own name; one from a folder goes by its size."""
    if name in pretrained.embedded_names():
        return name
    return f"{model.num_parameters / 1e6:.1f} M parameters"


def report_parity(names: Sequence[str], num_prompts: int, device: torch.device) -> None:
    """The share of prompts that both engines continue alike, greedily; the others are named."""
    (target, drafter), encode = load(names, device, torch.float32)
    plain, ours = DecodeEngine(target), SpeculativeEngine(target, drafter)
    texts = varied(plain, [encode(text) for text in prompts.one_hundred()], num_prompts)
    different = differing(plain, ours, texts)
    record(
        "speculative_parity",
        1 - len(different) / len(texts),
        "share of texts",
        limit=1.0,
        limit_name="all texts",
        device=device,
        num_prompts=len(texts),
        new_tokens=PARITY_TOKENS,
        different=different[:20],
        target=names[0],
        drafter=names[1],
    )


def differing(plain: DecodeEngine, ours: SteppingEngine, texts: list[list[int]]) -> list[int]:
    """Which prompts the engines do not continue alike, greedily."""
    capacity, different = max(map(len, texts)) + PARITY_TOKENS, []
    for begin in range(0, len(texts), PARITY_BATCH):
        rows = texts[begin : begin + PARITY_BATCH]
        plain.start(rows, capacity)
        both = plain.decode(PARITY_TOKENS).tolist(), ours.generate(rows, PARITY_TOKENS).tokens
        different += [begin + row for row, (one, other) in enumerate(zip(*both, strict=True)) if one != other]
    return different


def varied(engine: DecodeEngine, openings: list[list[int]], count: int) -> list[list[int]]:
    """So many prompts: the openings, then each with eight tokens more that the target drew."""
    found = openings[:count]
    capacity = max(map(len, openings)) + 8
    while len(found) < count:
        opening = openings[len(found) % len(openings)]
        engine.start([opening], capacity)
        found.append(opening + engine.decode(8, temperature=1.0, seed=len(found))[0].tolist())
    return found


def report_speed(
    names: Sequence[str], gammas: Sequence[int], batches: Sequence[int], device: torch.device
) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    (target, drafter), encode = load(names, device, dtype)
    names = [label(name, model) for name, model in zip(names, (target, drafter), strict=True)]
    plain = DecodeEngine(target)
    ours = {gamma: SpeculativeEngine(target, drafter, draft_length=gamma) for gamma in gammas}
    for domain, openings in DOMAINS.items():
        texts = [encode(text) for text in openings()]
        for temperature in (0.0, 1.0):
            kind = f"{domain}_b1" + ("_sampled" if temperature else "")
            tried = [race(plain, ours[gamma], [[t] for t in texts[::4]], temperature) for gamma in gammas]
            for one in tried:
                note(kind, one, device, names)
            gamma = max(tried, key=lambda one: one.speed_up).gamma
            others = [[text] for number, text in enumerate(texts) if number % 4]
            final = race(plain, ours[gamma], others, temperature)
            report(f"speculative_{kind}", final, device, described(final, names))
            if domain == "code" and not temperature:
                for batch in batches:
                    rows = (texts * batch)[:batch]
                    found = race(plain, ours[gamma], [rows] * 3, 0.0)
                    report(f"speculative_code_b{batch}", found, device, described(found, names))


def race(
    plain: DecodeEngine, ours: SteppingEngine, batches: Sequence[list[list[int]]], temperature: float
) -> Race:
    """Takes turns, a batch each; the first of them is run once before, to record and to warm up.

    Engines that only decode greedily are not told a temperature.
    """
    longest = max(len(row) for rows in batches for row in rows)
    capacity = longest + TOKENS + ours.longest_draft + 1
    plain_s, ours_s, tally, gained = [], [], Tally(), []
    for number, rows in enumerate([batches[0], *batches]):
        plain.start(rows, capacity)
        spent = seconds(lambda: plain.decode(TOKENS, temperature=temperature), plain.device)
        draws = {"temperature": temperature, "seed": number} if temperature else {}
        first = ours.start(rows, capacity, **draws)
        written, judged = [1 for _ in first], []
        ours_spent = seconds(lambda w=written, j=judged: write(ours, w, j), plain.device)
        if number:
            plain_s.append(spent)
            ours_s.append(ours_spent)
            gained += [accepted + 1 for accepted in judged]
            for accepted in judged:
                tally = tally.after(ours.longest_draft, accepted)
    parts = [queued(part, plain.device) for part in (ours.draft, ours.verify)]
    token_s = statistics.median(plain_s) / TOKENS
    mean = statistics.mean(gained)
    return Race(ours.longest_draft, len(batches[0]), plain_s, ours_s, token_s, *parts, tally, mean)


def queued(part: Callable[[], None], device: torch.device) -> float:
    """Seconds of one of many runs that follow each other, as tokens of the decode engine do."""
    part()
    times = [seconds(lambda: [part() for _ in range(QUEUED)], device) for _ in range(ROUNDS)]
    return statistics.median(times) / QUEUED


def write(ours: SteppingEngine, written: list[int], judged: list[int]) -> None:
    """Steps until every row has its tokens; keeps how many drafts of each stood until it had."""
    while min(written) < TOKENS + 1:
        ours.launch_ahead(TOKENS + 1 - min(written))
        for row, new in enumerate(ours.collect()):
            if written[row] < TOKENS + 1:
                judged.append(len(new) - 1)
            written[row] += len(new)


def report(name: str, found: Race, device: torch.device, row: Mapping[str, object]) -> None:
    """A race beside what theory says of it; `row` is what else a reader should know."""
    record(
        name,
        found.speed_up,
        "speed-up",
        limit=found.predicted() if found.num_rows == 1 else None,
        limit_name="theory from the α, c and v measured here" if found.num_rows == 1 else SLOWEST,
        peer="DecodeEngine",
        peer_value=1.0,
        spread=found.spread,
        device=device,
        **row,
    )


def note(kind: str, found: Race, device: torch.device, names: Sequence[str]) -> None:
    record_raw("speculative", device, name=kind, speed_up=rounded(found.speed_up), **described(found, names))


def described(found: Race, names: Sequence[str]) -> dict[str, object]:
    constant = found.predicted(constant=True)
    return {
        "gamma": found.gamma,
        **{name: rounded(value) for name, value in found.terms().items()},
        "predicted": rounded(found.predicted()),
        "predicted_v1": rounded(constant),
        "measured_over_predicted_v1": rounded(found.speed_up / constant),
        "token_ms": rounded(found.token_s * 1e3),
        "new_tokens": TOKENS,
        "target": names[0],
        "drafter": names[1],
    }


def report_verify(device: torch.device) -> None:
    """A step of one token over one of eight, in the midst of a text; all settings in turns."""
    model = random_model("llama3_8b")
    state = StepState(model, 1, PROMPT + NEW, torch.Tensor.contiguous)
    with torch.no_grad():
        prefill(state, random_prompts(model, 1))
        state.positions.fill_(PROMPT + NEW // 2)
        steps = ways_to_read(state, SETTINGS)
    report_reading("verify8", "one-token time over eight-token time", steps, device)


def report_reading(
    name: str, unit: str, steps: Mapping[str, Callable[[], None]], device: torch.device
) -> None:
    """What reading several tokens of Llama-3-8B's shape takes beside one, by every setting, in turns.

    Args:
        steps: of `ways_to_read`.
    """
    with torch.no_grad():
        runs = {way: recorded(step, device) for way, step in steps.items()}
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(ROUNDS):
        for way, run in runs.items():
            times[way] += timing.measure(run, device=device, warmup=2, repeats=10).times_s
    one = statistics.median(times.pop("one token"))
    for way, found in times.items():
        ms = rounded(statistics.median(found) * 1e3)
        record_raw(name, device, settings=way, step_ms=rounded(one * 1e3), verify_ms=ms)
    ours = timing.Timing(tuple(times["default"]))
    record(
        f"{name}_llama3_8b",
        one / ours.median_s,
        unit,
        limit=1.0,
        limit_name="reading the weights once",
        peer="DecodeEngine's step of one token",
        peer_value=1.0,
        spread=ours.spread,
        device=device,
        step_ms=rounded(one * 1e3),
        verify_ms=rounded(ours.median_s * 1e3),
        fastest=min(times, key=lambda way: statistics.median(times[way])),
    )


def report_texts(device: torch.device) -> None:
    """The pass over eight tokens of each of several texts, beside a step of one token each."""
    model = random_model("llama3_8b", num_layers=FEW_LAYERS)
    for batch in TEXTS:
        state = StepState(model, batch, PROMPT + NEW, torch.Tensor.contiguous)
        with torch.no_grad():
            prefill(state, random_prompts(model, batch))
            state.positions.fill_(PROMPT + NEW // 2)
            ways = {
                "default": KernelSettings(),
                "PyTorch's products": KernelSettings(few_rows=False),
                "our kernel's": KernelSettings(tiles=our_tiles(state, batch * VERIFIED)),
            }
            steps = ways_to_read(state, ways)
            runs = {name: recorded(step, device) for name, step in steps.items()}
        times = {name: timing.measure(run, device=device, warmup=3, repeats=20) for name, run in runs.items()}
        one_ms = times.pop("one token").median_s * 1e3
        for name, found in times.items():
            ms = rounded(found.median_s * 1e3)
            record_raw("verify8", device, settings=name, texts=batch, step_ms=rounded(one_ms), verify_ms=ms)
            print(f"{batch} texts, {name}: {ms} ms for eight tokens, {one_ms:.3f} for one")


def our_tiles(state: StepState, num_rows: int) -> dict[tuple[int, int, bool], AnyTile]:
    """For every matrix, as the kernel of ours would cut it for so many rows."""
    layer, head = state.layers[0], state.model.lm_head.weight.data
    matrices = [(layer.qkv, False), (layer.output, False), (layer.gate_up, True), (layer.down, False)]
    found = {}
    for weight, gated in [*matrices, (head, False)]:
        x = weight.new_empty(num_rows, weight.shape[1])
        tile = best_linear_tile(x, weight, gated, "triton")
        found[weight.shape[0] // (1 + gated), weight.shape[1], gated] = tile
    return found


def ways_to_read(
    state: StepState,
    settings: Mapping[str, KernelSettings],
    num_tokens: int = VERIFIED,
    tree: TreeMask | None = None,
) -> dict[str, Callable[[], None]]:
    """One token a row, and several in a window of each setting; they hold the memory that they work on."""
    step = KernelStep(state, KernelSettings())
    windows = {
        name: Window(state, num_tokens, tree, backend="triton", settings=one)
        for name, one in settings.items()
    }
    return {"one token": lambda: step(state)} | {name: window.read for name, window in windows.items()}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    timing.synchronize(device)
    begun = time.perf_counter()
    work()
    timing.synchronize(device)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
