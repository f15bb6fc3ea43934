"""Speculation on a CPU: `base` with each drafter, prompt by prompt in turns with the decode engine.

    python benchmarks/speculative_cpu.py [--threads 2] [--tokens 256]

What a pass over several tokens costs is measured first, in turns with a pass over one; theory takes it as v.
The drafter is chosen on every fourth prompt and reported on the others; all of them go to the folder `raw`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from record import record, record_raw, rounded
from speculative import DOMAINS, seconds

from llmcourse import pretrained, timing
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import StepState
from llmcourse.decoding.engine.window import Window
from llmcourse.speculative import AdaptiveLength, Drafter, DraftLength, LookupDrafter, ModelDrafter, stream
from llmcourse.speculative.draft_length import Tally
from llmcourse.speculative.early_layers import first_layers

CPU = torch.device("cpu")
LONGEST, PLACE = 8, 300  # drafts, and where in a text the passes are timed


@dataclass(frozen=True)
class Race:
    """One drafter at several prompts.

    Attributes:
        plain_s, ours_s: of each prompt, to read it and to write.
        num_steps: over all prompts, without the one that reads it.
    """

    plain_s: list[float]
    ours_s: list[float]
    num_steps: int
    tally: Tally

    @property
    def speed_up(self) -> float:
        return sum(self.plain_s) / sum(self.ours_s)

    @property
    def spread(self) -> float:
        return timing.Timing(tuple(p / o for p, o in zip(self.plain_s, self.ours_s, strict=True))).spread


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--domains", default="code,prose,verse")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = pretrained.load("base")
    costs = verify_costs(model)
    print("v of 1 to 9 tokens:", *(f"{cost:.2f}" for cost in costs), flush=True)
    for domain in options.domains.split(","):
        texts = [tokenizer.encode("<|endoftext|>" + text) for text in DOMAINS[domain]()]
        report(domain, model, texts, options.tokens, drafters(model, costs))


def verify_costs(model) -> list[float]:
    """What a pass over 1, 2, … tokens takes, in passes over one."""
    state = StepState(model, 1, PLACE + 1)
    prefill(state, [[5] * (PLACE + 1)])
    windows = {n: Window(state, n).read for n in range(1, LONGEST + 2)}
    times = timing.measure_in_turns(windows, repeats=30)
    return [times[n].median_s / times[1].median_s for n in windows]


def drafters(model, costs: list[float]) -> dict[str, Callable[[], tuple[Drafter, int | DraftLength]]]:
    draft, size = pretrained.load("draft").model, model.config.vocab_size
    adaptive = AdaptiveLength(c=0.01, longest=LONGEST, verify_cost=lambda n: costs[n - 1])
    return {
        "lookup, γ = 4": lambda: (LookupDrafter(size), 4),
        "lookup, γ adapted": lambda: (LookupDrafter(size), adaptive),
        "draft, γ = 2": lambda: (ModelDrafter(draft), 2),
        "draft, γ = 4": lambda: (ModelDrafter(draft), 4),
        "first layer, γ = 2": lambda: (ModelDrafter(first_layers(model, 1)), 2),
    }


def report(domain: str, model, texts: list[list[int]], num_tokens: int, kinds: dict) -> None:
    """Chooses a drafter on some prompts, and records how it does on the others."""
    found = {}
    for name, made in kinds.items():
        found[name] = race(model, texts[::4], num_tokens, *made())
        record_raw("speculative_cpu", CPU, name=domain, drafter=name, **described(found[name]))
    best = max(found, key=lambda name: found[name].speed_up)
    others = [text for number, text in enumerate(texts) if number % 4]
    ours = race(model, others, num_tokens, *kinds[best]())
    record(
        f"speculative_{domain}_cpu",
        ours.speed_up,
        "speed-up",
        peer="DecodeEngine",
        peer_value=1.0,
        spread=ours.spread,
        device=CPU,
        drafter=best,
        target="base",
        new_tokens=num_tokens,
        threads=torch.get_num_threads(),
        **described(ours),
    )


def race(
    model, texts: list[list[int]], num_tokens: int, drafter: Drafter, draft_length: int | DraftLength
) -> Race:
    """Greedy, each prompt by one and then by the other."""
    plain, plain_s, ours_s, num_steps, tally = DecodeEngine(model), [], [], 0, Tally()
    settings = {"drafter": drafter, "draft_length": draft_length, "eos_token_ids": ()}
    for text in texts:
        plain_s.append(seconds(lambda t=text: write(plain, t, num_tokens), CPU))
        steps = []
        written = stream(model, [text], max_new_tokens=num_tokens, **settings)
        ours_s.append(seconds(lambda s=steps, w=written: s.extend(w), CPU))
        num_steps += len(steps) - 1
        for step in steps[1:]:
            tally = tally.after(len(step.drafts[0]), step.num_accepted[0])
    return Race(plain_s, ours_s, num_steps, tally)


def write(engine: DecodeEngine, text: list[int], num_tokens: int) -> None:
    engine.start([text], len(text) + num_tokens)
    engine.decode(num_tokens)


def described(found: Race) -> dict[str, float]:
    return {
        "speed_up": rounded(found.speed_up),
        "alpha": rounded(found.tally.rate),
        "num_steps": found.num_steps,
        "text_s": rounded(statistics.median(found.plain_s)),
    }


if __name__ == "__main__":
    main()
