"""Requests as they might come: when, and how long prompts and answers are; the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.serving.request import Request

Lengths = Callable[[Random], int]


@dataclass(frozen=True)
class Uniform:
    """Every length from `shortest` to `longest` is as likely as any other; equal, it is fixed.

    Raises:
        ValueError: a length below 1, or a longest that is below the shortest.
    """

    shortest: int
    longest: int

    def __post_init__(self):
        require_integer(1, "shortest", self.shortest, "use 1")
        require_integer(self.shortest, "longest", self.longest, "use the shortest for a fixed length")

    def __call__(self, rng: Random) -> int:
        return rng.randint(self.shortest, self.longest)


@dataclass(frozen=True)
class LogNormal:
    """Many short and a few very long ones, as people write: log(length) is normal.

    Attributes:
        median: half are shorter.
        sigma: of the logarithm; with 1, one in six is longer than 2.7 times the median.
        longest: longer ones are cut to it.

    Raises:
        ValueError: a number out of its range.
    """

    median: int
    sigma: float = 1.0
    longest: int = 4096

    def __post_init__(self):
        require_integer(1, "median", self.median, "use 256")
        allowed = "at least 0 and finite"
        require_number(lambda s: 0 <= s < math.inf, "sigma", allowed, self.sigma, "use 0 for a fixed length")
        require_integer(self.median, "longest", self.longest, "let it exceed the median")

    def __call__(self, rng: Random) -> int:
        length = round(self.median * math.exp(rng.gauss(0, self.sigma)))
        return min(max(length, 1), self.longest)


@dataclass(frozen=True)
class Arrivals:
    """Gaps between arrivals, drawn from a gamma distribution with a mean of 1 / rate.

    Attributes:
        per_s: requests a second on average; `math.inf` lets all come at once.
        burstiness: squared coefficient of variation of the gaps: 1 is a Poisson process, more comes in
            bursts, 0 is regular. (vLLM's option of that name is its inverse.)

    Raises:
        ValueError: a number out of its range.
    """

    per_s: float = math.inf
    burstiness: float = 1.0

    def __post_init__(self):
        require_number(lambda rate: rate > 0, "per_s", "positive", self.per_s, "use math.inf for all at once")
        allowed = "at least 0 and finite"
        require_number(
            lambda b: 0 <= b < math.inf, "burstiness", allowed, self.burstiness, "use 1 for a Poisson process"
        )

    def gap_s(self, rng: Random) -> float:
        """Seconds until the next request."""
        if math.isinf(self.per_s):
            return 0.0
        if self.burstiness == 0:
            return 1 / self.per_s
        return rng.gammavariate(1 / self.burstiness, self.burstiness / self.per_s)


def poisson(per_s: float) -> Arrivals:
    """Arrivals that know nothing of each other."""
    return Arrivals(per_s)


def bursty(per_s: float, burstiness: float = 8.0) -> Arrivals:
    """As many, in crowds with silence between them."""
    return Arrivals(per_s, burstiness)


def make_requests(
    count: int,
    arrivals: Arrivals,
    prompts: Lengths,
    answers: Lengths,
    *,
    seed: int = 0,
    shared_prefix: int = 0,
    vocab_size: int = 10_000,
) -> list[Request]:
    """Requests with random tokens, in the order of their arrival.

    Args:
        count: how many.
        arrivals: when they come.
        prompts: lengths of what is each request's own.
        answers: lengths of the answers, which end at no token before.
        seed: of everything. Arrivals, lengths and tokens are drawn apart, so that changing one of them
            leaves the others as they were.
        shared_prefix: tokens with which every prompt begins, a system prompt for instance.
        vocab_size: tokens are drawn below it.

    Raises:
        ValueError: a number out of its range.
    """
    require_integer(1, "count", count, "use 1")
    require_integer(0, "seed", seed, "use 0")
    require_integer(0, "shared_prefix", shared_prefix, "use 0 for none")
    require_integer(1, "vocab_size", vocab_size, "use that of the model")
    gaps, lengths, answered, words = (
        Random(f"{seed} {what}") for what in ("gap", "prompt", "answer", "word")
    )
    start = _tokens(words, shared_prefix, vocab_size)
    requests, now = [], 0.0
    for number in range(count):
        prompt = start + _tokens(words, prompts(lengths), vocab_size)
        requests.append(Request(str(number), prompt, max_tokens=answers(answered), arrival_s=now))
        now += arrivals.gap_s(gaps)
    return requests


def nano_vllm_requests(
    count: int = 256, longest_prompt: int = 1024, longest_answer: int = 1024
) -> list[Request]:
    """The requests of nano-vllm's own benchmark (bench.py), all at once: drawn with the same seed and calls.

    With the defaults, 142,827 tokens of prompts and 133,966 of answers.

    Raises:
        ValueError: a count below 1, or lengths below the 100 at which it begins.
    """
    require_integer(1, "count", count, "use 256")
    for name, length in (("longest_prompt", longest_prompt), ("longest_answer", longest_answer)):
        require(length >= 100, name, "at least 100", length, "use 1024")
    rng = Random(0)
    prompts = [_tokens(rng, rng.randint(100, longest_prompt), 10_001) for _ in range(count)]
    return [
        Request(str(number), prompt, max_tokens=rng.randint(100, longest_answer))
        for number, prompt in enumerate(prompts)
    ]


def padded(requests: Sequence[Request], batch_size: int) -> list[Request]:
    """What a batch of fixed shape computes in place of these requests, as `generate` of most libraries.

    Each batch is as long as its longest prompt and goes on until its longest answer is there: shorter
    prompts are padded, and rows that have ended ride along. The tokens of the padding are the prompt's first,
    which costs what any others would.

    Raises:
        ValueError: a batch size below 1.
    """
    require_integer(1, "batch_size", batch_size, "use as many as the scheduler has slots")
    batches = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
    return [
        replace(
            request,
            prompt=request.prompt[:1] * (longest - len(request.prompt)) + request.prompt,
            max_tokens=max(other.max_tokens for other in batch),
            stop_token_ids=(),
        )
        for batch in batches
        for longest in [max(len(other.prompt) for other in batch)]
        for request in batch
    ]


def _tokens(rng: Random, count: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(count)]
