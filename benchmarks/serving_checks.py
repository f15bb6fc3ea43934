"""The serving engine on a GPU: recorded or not, overlapping or not, speculating or not, it answers as alone.

In fp32, where two likeliest tokens are as good as never equal. The tests ask the same of the CPU's path.

    PYTHONPATH=. python benchmarks/serving_checks.py        ends with 1 if a check fails
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import torch

from llmcourse.decoding import SamplingParams, generate
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.serving import (
    BlockPool,
    ChunkedPrefill,
    ContinuousBatching,
    Engine,
    PagedCache,
    PagedRunner,
    Request,
    Scheduler,
    TraditionalBatching,
)

SLOTS, SIZE = 40, 16
POLICIES = (TraditionalBatching(), ContinuousBatching(), ChunkedPrefill(100), ChunkedPrefill(400))
OTHERS = SamplingParams(temperature=0.0, presence_penalty=0.5)


def model() -> Decoder:
    torch.manual_seed(0)
    made = (
        Decoder(DecoderConfig(5000, 256, 384, 3, 8, 4, 64, 1024, qk_norm=True)).cuda().requires_grad_(False)
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def requests() -> list[Request]:
    """Sixty of them, a third with a common beginning, a few with penalties."""
    dice = random.Random(1)
    shared = [dice.randrange(5000) for _ in range(70)]
    found = []
    for i in range(60):
        prompt = shared * (i % 3 == 0) + [dice.randrange(5000) for _ in range(dice.randint(1, 250))]
        params = OTHERS if i % 10 == 0 else SamplingParams(temperature=0.0)
        found.append(Request(str(i), prompt, max_tokens=dice.randint(1, 90), params=params))
    return found


class Knowing:
    """Drafts of an answer that is known, every fourth of them wrong."""

    vocab_size = 5000

    def __init__(self, text: list[int], longest: int):
        self.text, self.longest = text, longest

    def begin(self, prompt, max_tokens, params, seed) -> Knowing:
        return self

    def draft(self, text: list[int], most: int) -> tuple[list[int], None]:
        places = range(len(text), min(len(text) + min(most, self.longest), len(self.text)))
        return [(self.text[i] + (i % 4 == 0)) % self.vocab_size for i in places], None

    def verify(self, p, q, drafts, uniform) -> list[int]:
        raise RuntimeError("certain drafts need no rule")


def speculating(written: list[list[int]]) -> list[Request]:
    """The requests, of which two in three speculate."""
    return [
        replace(r, speculation=Knowing([*r.prompt, *tokens], 1 + i % 7) if i % 3 else None)
        for i, (r, tokens) in enumerate(zip(requests(), written, strict=True))
    ]


def serve(
    decoder: Decoder,
    wanted: list[Request],
    policy,
    graph: bool,
    overlap: bool,
    pdl: bool,
    num_blocks: int,
) -> tuple[list[list[int]], int]:
    """The answers, and how often a request was preempted."""
    cache = PagedCache(decoder, num_blocks, SIZE)
    cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)  # what nobody wrote must not be looked at
    pool = BlockPool(num_blocks, SIZE)
    runner = PagedRunner(decoder, cache, max_running=SLOTS, max_length=512, graph=graph, pdl=pdl)
    engine = Engine(Scheduler(pool, policy, max_running=SLOTS), runner, overlap)
    states = [engine.add(request) for request in wanted]
    for _ in engine.stream():
        pass
    if pool.num_free != num_blocks:
        raise RuntimeError(f"{num_blocks - pool.num_free} blocks are not given back")
    return [state.generated for state in states], sum(state.num_preemptions for state in states)


def main() -> None:
    decoder = model()
    expected = [
        generate(decoder, [r.prompt], max_new_tokens=r.max_tokens, params=r.params, eos_token_ids=())[
            0
        ].tokens
        for r in requests()
    ]
    failed = 0
    for policy, graph, overlap, pdl, num_blocks, drafts in itertools.product(
        POLICIES, (True, False), (False, True), (False, True), (1500, 120), (False, True)
    ):
        wanted = speculating(expected) if drafts else requests()
        answers, preempted = serve(decoder, wanted, policy, graph, overlap, pdl, num_blocks)
        wrong = [i for i, (ours, true) in enumerate(zip(answers, expected, strict=True)) if ours != true]
        failed += bool(wrong)
        name = f"{policy} {graph=} {overlap=} {pdl=} {num_blocks=} {drafts=}"
        print(f"{'WRONG' if wrong else 'ok   '} {name}: {preempted} preempted {wrong or ''}", flush=True)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
