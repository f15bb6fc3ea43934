"""How fast the embedded `base` decodes one sequence on this machine, beside its limit, a peer and no cache.

The limit is a copy of as many bytes as the machine can move, divided by the bytes of the weights. The
peer is transformers' `generate`, with its cache, on the same weights; ours is `generate` on the decode
engine. Beside it stand the model itself with its plain cache, and without any. All of them take turns in
one process, greedily, and write the same tokens or say that they did not.

    python benchmarks/decode_base.py        appends one line to benchmarks/results/<device>.jsonl

Run it on a quiet machine: `load` in the line is how many programs were running when it began.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from record import record
from transformers import AutoModelForCausalLM

from llmcourse import hardware, pretrained, timing
from llmcourse.decoding import generate
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.source import LogitsSource, UncachedLogits
from llmcourse.model import Decoder

NEW_TOKENS = 256
ROUNDS = 5


def main() -> None:
    device, load = hardware.default_device(), os.getloadavg()[0]
    plain, tokenizer = pretrained.load("base", device=device)
    prompt = [0, *tokenizer.encode("Once upon a time there was a king who had")]
    sources = {
        "engine": DecodeEngine(pretrained.load("base", device=device).model),
        "plain": plain,
        "uncached": UncachedLogits(plain),
    }
    writers = {name: writer(source, prompt) for name, source in sources.items()}
    writers["peer"] = transformers_writer(prompt, device)
    texts = {name: write() for name, write in writers.items()}  # which warms up, too
    times = take_turns(writers, device)
    speed = {name: NEW_TOKENS / timed.median_s for name, timed in times.items()}
    record(
        f"decode_base_{'cpu' if device.type == 'cpu' else 'gpu'}",
        speed["engine"],
        "tok/s",
        limit=hardware.copy_bandwidth(device) * 1e9 / (plain.num_parameters * 4),
        limit_name="copy bandwidth over the bytes of the fp32 weights",
        peer="transformers generate",
        peer_value=speed["peer"],
        spread=times["engine"].spread,
        device=device,
        uncached_value=round(speed["uncached"], 1),
        ratio_uncached=round(speed["engine"] / speed["uncached"], 2),
        plain_value=round(speed["plain"], 1),
        plain_ratio_peer=round(speed["plain"] / speed["peer"], 2),
        plain_ratio_uncached=round(speed["plain"] / speed["uncached"], 2),
        same_tokens=len(set(map(tuple, texts.values()))) == 1,
        prompt_tokens=len(prompt),
        new_tokens=NEW_TOKENS,
        threads=torch.get_num_threads(),
        load=round(load, 2),
    )


def writer(source: Decoder | LogitsSource, prompt: list[int]) -> Callable[[], list[int]]:
    return lambda: generate(source, [prompt], max_new_tokens=NEW_TOKENS, eos_token_ids=())[0].tokens


def transformers_writer(prompt: list[int], device: torch.device) -> Callable[[], list[int]]:
    model = AutoModelForCausalLM.from_pretrained(pretrained.CHECKPOINTS / "base", dtype=torch.float32)
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None  # so that it writes on, with nothing to look out for
    ids = torch.tensor([prompt], device=device)

    def write() -> list[int]:
        found = model.generate(ids, use_cache=True, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        return found[len(prompt) :].tolist()

    return write


def take_turns(writers: dict[str, Callable[[], list[int]]], device: torch.device) -> dict[str, timing.Timing]:
    """Every writer once a round, so that what else the machine does meets all of them."""
    rounds = [
        {
            name: timing.measure(write, device=device, warmup=0, repeats=1).median_s
            for name, write in writers.items()
        }
        for _ in range(ROUNDS)
    ]
    return {name: timing.Timing(tuple(taken[name] for taken in rounds)) for name in writers}


if __name__ == "__main__":
    main()
