"""How fast the serving engine answers many requests at once, beside the roofline and three ways of doing it.

The shape of Qwen3-0.6B with random weights in bfloat16, and the 256 requests of nano-vllm's own benchmark:
prompts and answers of 100 to 1024 tokens, all at once. In the same process: the limit, what `RooflineTime`
predicts for the same schedule from this GPU's measured ceilings; traditional batching with the same kernels,
all 256 in one batch, prompts padded to the longest and every row running until the last answer is there; and
transformers' `generate_batch` on 64 of the requests, 300 tokens each. Then requests that arrive over time, as
they are and with a document for every third prompt: the 99th percentile of the time between two tokens with
whole prompts and with prompts in chunks.

    python benchmarks/serve.py [--only PARTS] [--repeats 3] [--no-pdl]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from random import Random

import torch
from large_models import random_model
from record import record

from llmcourse import hardware, timing
from llmcourse.costs import MODELS
from llmcourse.model import Decoder
from llmcourse.serving import (
    BlockPool,
    ChunkedPrefill,
    ContinuousBatching,
    Engine,
    Metrics,
    PagedCache,
    PagedRunner,
    Policy,
    Request,
    RooflineTime,
    Scheduler,
    TraditionalBatching,
    measure,
    nano_vllm_requests,
    padded,
    poisson,
    replay,
    simulate,
)

NAME, SLOTS, SIZE, BLOCKS = "qwen3_0.6b", 256, 16, 36_000
LONGEST = 2064  # tokens of a text
DOCUMENT = 3072  # tokens of a long prompt
WHOLE, CHUNKED, FINE = ContinuousBatching(16_384), ChunkedPrefill(2048), ChunkedPrefill(768)
LOAD = 0.8  # of the requests a second that are answered when all come at once
PARTS = ("throughput", "traditional", "transformers", "chunked", "documents")


class Server:
    """A model, its cache and its graphs, which all measurements share.

    Args:
        pdl: start our kernels early.
        longest: tokens of a text, at most.
        chunks: whose steps are recorded ahead.
        beside: a server whose model and cache this one uses too.
    """

    def __init__(
        self,
        pdl: bool = True,
        longest: int = LONGEST,
        chunks: ChunkedPrefill = CHUNKED,
        beside: Server | None = None,
    ):
        self.pdl = pdl
        self.model: Decoder = beside.model if beside else random_model(NAME)
        self.cache = beside.cache if beside else PagedCache(self.model, BLOCKS, SIZE)
        self.runner = PagedRunner(self.model, self.cache, max_running=SLOTS, max_length=longest, pdl=pdl)
        began = time.perf_counter()
        self.runner.record(chunks.token_budget)
        torch.cuda.synchronize()
        self.recording_s = time.perf_counter() - began

    def scheduler(self, policy: Policy) -> Scheduler:
        return Scheduler(BlockPool(BLOCKS, SIZE, reuse_prefixes=False), policy, max_running=SLOTS)

    def serve(self, requests: list[Request], policy: Policy) -> Metrics:
        torch.cuda.synchronize()
        return measure(replay(requests, Engine(self.scheduler(policy), self.runner, overlap=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="by comma; all of them: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-pdl", action="store_true", help="let no kernel of ours start early")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    ceilings = hardware.measure_ceilings(torch.device("cuda"), refresh=True)
    print(ceilings, flush=True)
    server = Server(not arguments.no_pdl)
    print(f"graphs recorded in {server.recording_s:.1f} s", flush=True)
    server.serve(nano_vllm_requests(48), WHOLE)  # compiles what steps of whole prompts need
    if "throughput" in parts:
        throughput(server, ceilings, arguments.repeats, "traditional" in parts)
    if "transformers" in parts:
        against_transformers(server)
    requests = nano_vllm_requests()
    if "chunked" in parts:
        chunked("serve_chunked_prefill_p99_short_prompts", server, CHUNKED, requests, arguments.repeats)
    if "documents" in parts:
        longer = Server(server.pdl, DOCUMENT + 1024, FINE, beside=server)
        chunked("serve_chunked_prefill_p99", longer, FINE, with_documents(requests), arguments.repeats)


def throughput(server: Server, ceilings: hardware.Ceilings, repeats: int, traditional: bool) -> None:
    """All requests at once, the median run."""
    requests = nano_vllm_requests()
    runs = sorted((server.serve(requests, WHOLE) for _ in range(repeats)), key=lambda run: run.duration_s)
    ours = runs[len(runs) // 2]
    predicted = measure(
        simulate(requests, server.scheduler(WHOLE), RooflineTime(MODELS["Qwen3-0.6B"], ceilings))
    )
    useful = sum(request.max_tokens for request in requests)
    peer = None
    if traditional:
        peer = useful / server.serve(padded(requests, SLOTS), TraditionalBatching()).duration_s
    record(
        f"serve_{NAME}_256",
        ours.output_tokens_per_s,
        "tok/s",
        limit=predicted.output_tokens_per_s,
        limit_name="the roofline's prediction for the same schedule",
        peer=peer and "traditional batching, one padded batch, the same kernels",
        peer_value=peer,
        spread=timing.Timing(tuple(run.duration_s for run in runs)).spread,
        device=torch.device("cuda"),
        policy=repr(WHOLE),
        duration_s=round(ours.duration_s, 3),
        ttft_p50_s=round(ours.ttft_p50_s, 3),
        itl_p50_ms=round(ours.itl_p50_s * 1e3, 2),
        itl_p99_ms=round(ours.itl_p99_s * 1e3, 2),
        recording_s=round(server.recording_s, 1),
        pdl=server.pdl,
    )


def with_documents(requests: list[Request]) -> list[Request]:
    """Every third prompt is repeated until it is a document's length."""
    found = []
    for number, request in enumerate(requests):
        times = -(-DOCUMENT // len(request.prompt)) if number % 3 == 2 else 1
        found.append(replace(request, prompt=(tuple(request.prompt) * times)[:DOCUMENT]))
    return found


def chunked(name: str, server: Server, chunks: ChunkedPrefill, requests: list[Request], repeats: int) -> None:
    """Requests that arrive over time, with whole prompts and with chunks."""
    for policy in (WHOLE, chunks):  # compiles and records what is new
        server.serve(requests, policy)
    at_once, at_once_pieces = (server.serve(requests, policy) for policy in (WHOLE, chunks))
    arrivals = poisson(LOAD * at_once.requests_per_s)
    rng, now, timed = Random(1), 0.0, []
    for request in requests:
        timed.append(replace(request, arrival_s=now))
        now += arrivals.gap_s(rng)
    whole, pieces = ([server.serve(timed, policy) for _ in range(repeats)] for policy in (WHOLE, chunks))
    p99 = [statistics.median(run.itl_p99_s for run in runs) for runs in (whole, pieces)]
    rate = [statistics.median(run.output_tokens_per_s for run in runs) for runs in (whole, pieces)]
    record(
        name,
        p99[0] / p99[1],
        "unchunked p99 over chunked p99 of the time between tokens",
        spread=timing.Timing(tuple(run.itl_p99_s for run in pieces)).spread,
        device=torch.device("cuda"),
        policies=[repr(WHOLE), repr(chunks)],
        longest_prompt=max(len(request.prompt) for request in requests),
        itl_p99_ms=[round(value * 1e3, 2) for value in p99],
        ttft_p50_ms=[
            round(statistics.median(r.ttft_p50_s for r in runs) * 1e3, 1) for runs in (whole, pieces)
        ],
        throughput=[round(value) for value in rate],
        throughput_ratio=round(rate[1] / rate[0], 3),
        throughput_at_once=[round(run.output_tokens_per_s) for run in (at_once, at_once_pieces)],
        arrivals_per_s=round(arrivals.per_s, 1),
    )


def against_transformers(server: Server, count: int = 64, num_tokens: int = 300) -> None:
    """The peer serves a quarter of the requests with short answers: all of them take it minutes."""
    requests = [replace(request, max_tokens=num_tokens) for request in nano_vllm_requests(count)]
    ours = server.serve(requests, WHOLE).output_tokens_per_s
    peer = transformers_tokens_per_s(requests, num_tokens)
    record(
        f"serve_{NAME}_256_vs_transformers",
        ours,
        "tok/s",
        peer="transformers generate_batch, paged|sdpa",
        peer_value=peer,
        device=torch.device("cuda"),
        requests=count,
        new_tokens=num_tokens,
    )


def transformers_tokens_per_s(requests: list[Request], num_tokens: int) -> float:
    from decode import peer_config
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = peer_config(NAME)
    torch.set_default_device("cuda")
    try:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="paged|sdpa"
        ).eval()
    finally:
        torch.set_default_device(None)
    # Whether it records graphs, and how many tokens it takes at once, is left to the peer.
    settings = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    prompts = [list(request.prompt) for request in requests]
    model.generate_batch(inputs=prompts[:4], generation_config=settings, progress_bar=False)
    torch.cuda.synchronize()
    began = time.perf_counter()
    found = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
    taken = time.perf_counter() - began
    written = sum(len(answer.generated_tokens) for answer in found.values())
    if written != len(requests) * num_tokens:
        raise RuntimeError(f"the peer wrote {written} of {len(requests) * num_tokens} tokens")
    return written / taken


if __name__ == "__main__":
    main()
