"""How service is judged, in the terms of the field (vLLM's and SGLang's benchmarks, DistServe).

TTFT   time to first token: first token − arrival, waiting included
ITL    inter-token latency: each gap between two tokens of one answer
TPOT   time per output token: (last token − first token) / (tokens − 1), one figure a request
E2E    last token − arrival
goodput   requests a second that keep a service level objective (Zhong et al. 2024, section 2)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmcourse.decoding.errors import require, require_number
from llmcourse.serving.clock import Timeline, Trace


@dataclass(frozen=True)
class Objective:
    """What a request must keep: seconds to its first token, and from token to token on average.

    Raises:
        ValueError: a limit that is not positive.
    """

    ttft_s: float = math.inf
    tpot_s: float = math.inf

    def __post_init__(self):
        for name in ("ttft_s", "tpot_s"):
            remedy = "use math.inf for no limit"
            require_number(lambda limit: limit > 0, name, "positive", getattr(self, name), remedy)

    def kept(self, timeline: Timeline) -> bool:
        """Whether a request was answered within the limits; one that was refused or failed was not."""
        if not timeline.answered:
            return False
        return ttft(timeline) <= self.ttft_s and (tpot(timeline) or 0.0) <= self.tpot_s


@dataclass(frozen=True)
class Metrics:
    """Figures of a whole service; of latencies, `p50` and `p99` are percentiles. NaN where there is none.

    Attributes:
        duration_s: from the first arrival to the last token.
        output_tokens_per_s, requests_per_s: of requests answered.
        goodput_per_s: requests a second that keep the objective.
        num_preemptions, num_refused: how often, and how many.
        num_drafted, num_accepted: drafts that were computed, and those that answers hold: what speculation
            paid and what it got.
    """

    duration_s: float
    num_finished: int
    num_refused: int
    num_preemptions: int
    output_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    e2e_p50_s: float
    e2e_p99_s: float
    num_drafted: int = 0
    num_accepted: int = 0


def ttft(timeline: Timeline) -> float:
    """Seconds from a request's arrival to its first token."""
    return timeline.token_s[0] - timeline.request.arrival_s


def tpot(timeline: Timeline) -> float | None:
    """Seconds from token to token on average; None for an answer of a single token."""
    times = timeline.token_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


def inter_token(timeline: Timeline) -> list[float]:
    """Each gap between two tokens, in seconds."""
    return [after - before for before, after in pairwise(timeline.token_s)]


def percentile(values: Sequence[float], percent: int | float) -> float:
    """With linear interpolation between neighbours; NaN of nothing.

    Raises:
        ValueError: `percent` is not in [0, 100].
    """
    require_number(lambda p: 0 <= p <= 100, "percent", "in [0, 100]", percent, "use 50 for the median")
    return float(np.percentile(values, percent)) if values else math.nan


def measure(trace: Trace, objective: Objective | None = None) -> Metrics:
    """The figures of a trace.

    Raises:
        ValueError: no request was answered.
    """
    objective = objective or Objective()
    finished = [timeline for timeline in trace.timelines if timeline.answered]
    require(bool(finished), "trace", "one with an answered request", "none", "serve at least one")
    duration_s = trace.end_s - min(timeline.request.arrival_s for timeline in trace.timelines)
    latencies = {
        "ttft": [ttft(timeline) for timeline in finished],
        "tpot": [tpot(timeline) for timeline in finished if len(timeline.token_s) > 1],
        "itl": [gap for timeline in finished for gap in inter_token(timeline)],
        "e2e": [timeline.token_s[-1] - timeline.request.arrival_s for timeline in finished],
    }
    return Metrics(
        duration_s=duration_s,
        num_finished=len(finished),
        num_refused=sum(timeline.refusal is not None for timeline in trace.timelines),
        num_preemptions=sum(timeline.num_preemptions for timeline in trace.timelines),
        num_drafted=sum(timeline.num_drafted for timeline in trace.timelines),
        num_accepted=sum(timeline.num_accepted for timeline in trace.timelines),
        output_tokens_per_s=sum(len(timeline.token_s) for timeline in finished) / duration_s,
        requests_per_s=len(finished) / duration_s,
        goodput_per_s=sum(map(objective.kept, trace.timelines)) / duration_s,
        **{
            f"{name}_p{percent}_s": percentile(values, percent)
            for name, values in latencies.items()
            for percent in (50, 99)
        },
    )
