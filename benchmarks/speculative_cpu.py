"""Speculation on a CPU: `base` with each drafter, prompt by prompt in turns with the decode engine.

    python benchmarks/speculative_cpu.py [--threads 2] [--tokens 256]

The drafter and its γ are chosen on every fourth prompt and reported on the others, whose texts must be the
same; all that were tried go to the folder `raw`.
"""

from __future__ import annotations

import argparse
import statistics
from time import perf_counter

import torch
from record import record, record_raw, rounded
from speculative import DOMAINS, Race

from llmcourse import pretrained, timing
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.model import Decoder
from llmcourse.speculative import LookupDrafter, Tally
from llmcourse.speculative.early_layers import first_layers
from llmcourse.speculative.engine import SpeculativeEngine

CPU = torch.device("cpu")


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
    plain, engines = DecodeEngine(model), engines_of(model)
    for domain in options.domains.split(","):
        texts = [tokenizer.encode("<|endoftext|>" + text) for text in DOMAINS[domain]()]
        report(domain, plain, engines, texts, options.tokens)


def engines_of(model: Decoder) -> dict[str, SpeculativeEngine]:
    draft, lookup = pretrained.load("draft").model, LookupDrafter(model.config.vocab_size)
    kinds = {
        "lookup": (lookup, (2, 4, 6)),
        "draft": (draft, (2, 4)),
        "first layer": (first_layers(model, 1), (2,)),
    }
    return {
        f"{name}, γ = {gamma}": SpeculativeEngine(model, drafter, draft_length=gamma)
        for name, (drafter, gammas) in kinds.items()
        for gamma in gammas
    }


def report(
    domain: str,
    plain: DecodeEngine,
    engines: dict[str, SpeculativeEngine],
    texts: list[list[int]],
    num_tokens: int,
) -> None:
    """Chooses a drafter on some prompts, and records how it does on the others."""
    found = {}
    for name, engine in engines.items():
        found[name] = race(plain, engine, texts[::4], num_tokens)
        record_raw("speculative_cpu", CPU, name=domain, drafter=name, **described(found[name]))
    best = max(found, key=lambda name: found[name].speed_up)
    others = [text for number, text in enumerate(texts) if number % 4]
    ours = race(plain, engines[best], others, num_tokens)
    record(
        f"speculative_{domain}_cpu",
        ours.speed_up,
        "speed-up",
        limit=ours.predicted(),
        limit_name="theory from the α, c and v measured here",
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


def race(plain: DecodeEngine, ours: SpeculativeEngine, texts: list[list[int]], num_tokens: int) -> Race:
    """Greedy, each prompt by one and then by the other; the first is written once before, to warm up."""
    capacity = max(map(len, texts)) + num_tokens
    plain_s, ours_s, tally, gained = [], [], Tally(), []
    for number, text in enumerate([texts[0], *texts]):
        plain.start([text], capacity)
        begun = perf_counter()
        wanted = plain.decode(num_tokens)[0].tolist()
        spent = perf_counter() - begun
        found, judged, ours_spent = written(ours, text, num_tokens, capacity)
        if found[:num_tokens] != wanted:
            raise AssertionError(f"prompt {number} is continued in another way by {ours.drafter}")
        if number:
            plain_s.append(spent)
            ours_s.append(ours_spent)
            gained += [accepted + 1 for accepted in judged]
            for accepted in judged:
                tally = tally.after(ours.draft_length, accepted)
    plain.start([texts[0]], capacity)
    token = torch.tensor([5])
    parts = {"token": lambda: plain.step(token), "draft": ours.draft, "verify": ours.verify}
    times = timing.measure_in_turns(parts, repeats=min(20, num_tokens - 1))
    parts_s, mean = [times[name].median_s for name in parts], statistics.mean(gained)
    return Race(ours.draft_length, 1, plain_s, ours_s, *parts_s, tally, mean)


def written(
    engine: SpeculativeEngine, text: list[int], num_tokens: int, capacity: int
) -> tuple[list[int], list[int], float]:
    """The new tokens, how many drafts of each step stood, and the seconds after the text was read."""
    found, judged = engine.start([text], capacity), []
    begun = perf_counter()
    while len(found) < num_tokens:
        (new,) = engine.step()
        judged.append(len(new) - 1)
        found += new
    return found, judged, perf_counter() - begun


def described(found: Race) -> dict[str, float]:
    return {
        "speed_up": rounded(found.speed_up),
        "gamma": found.gamma,
        **{name: rounded(value) for name, value in found.terms().items()},
        "predicted": rounded(found.predicted()),
        "text_s": rounded(statistics.median(found.plain_s)),
    }


if __name__ == "__main__":
    main()
