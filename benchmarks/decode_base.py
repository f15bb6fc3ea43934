"""How fast the embedded `base` decodes one sequence on this machine, beside its limit and a peer.

The limit is a copy of as many bytes as the machine can move, divided by the bytes of the weights; the
peer is transformers' `generate` on the same weights, in the same process.

    python benchmarks/decode_base.py        appends one line to benchmarks/results/<device>.jsonl
"""

from __future__ import annotations

import torch
from record import record
from transformers import AutoModelForCausalLM

from llmcourse import hardware, pretrained, timing
from llmcourse.decoding import generate

NEW_TOKENS = 128


def main() -> None:
    device = hardware.default_device()
    model, tokenizer = pretrained.load("base", device=device)
    prompt = [0, *tokenizer.encode("Once upon a time there was a king who had")]
    ours = timing.measure(
        lambda: generate(model, [prompt], max_new_tokens=NEW_TOKENS, eos_token_ids=()),
        device=device,
        repeats=7,
    )
    peer = time_transformers(prompt, device)
    weight_bytes = model.num_parameters * 4
    limit = hardware.copy_bandwidth(device) * 1e9 / weight_bytes
    speed, peer_speed = NEW_TOKENS / ours.median_s, NEW_TOKENS / peer.median_s
    record(
        f"decode_base_{'cpu' if device.type == 'cpu' else 'gpu'}",
        speed,
        "tok/s",
        limit=limit,
        limit_name="copy bandwidth over the bytes of the fp32 weights",
        peer="transformers generate",
        peer_value=peer_speed,
        spread=ours.spread,
        device=device,
        threads=torch.get_num_threads(),
    )


def time_transformers(prompt: list[int], device: torch.device) -> timing.Timing:
    model = AutoModelForCausalLM.from_pretrained(pretrained.CHECKPOINTS / "base", dtype=torch.float32)
    model = model.to(device).eval()
    ids = torch.tensor([prompt], device=device)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return timing.measure(lambda: model.generate(ids, **length), device=device, repeats=7)


if __name__ == "__main__":
    main()
