"""How fast the embedded `base` decodes one sequence on this machine, beside its limit and a peer.

The limit is a copy of as many bytes as the machine can move, divided by the bytes of the weights; the
peer is transformers' `generate` on the same weights, in the same process.

    python benchmarks/decode_base.py        appends one line to benchmarks/results/<device>.jsonl
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from llmcourse import hardware, pretrained, timing
from llmcourse.decoding import generate

NEW_TOKENS = 128
RESULTS = Path(__file__).parent / "results"


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
    fingerprint = hardware.fingerprint(device)
    row = {
        "name": f"decode_base_{'cpu' if device.type == 'cpu' else 'gpu'}",
        "value": round(speed, 1),
        "unit": "tok/s",
        "limit": round(limit, 1),
        "limit_name": "copy bandwidth over the bytes of the fp32 weights",
        "ratio_limit": round(speed / limit, 4),
        "peer": "transformers generate",
        "peer_value": round(peer_speed, 1),
        "ratio_peer": round(speed / peer_speed, 3),
        "spread": round(ours.spread, 3),
        "device": fingerprint.pop("device"),
        "versions": fingerprint,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "threads": torch.get_num_threads(),
    }
    path = RESULTS / (re.sub(r"[^a-z0-9]+", "-", row["device"].lower()).strip("-") + ".jsonl")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


def time_transformers(prompt: list[int], device: torch.device) -> timing.Timing:
    model = AutoModelForCausalLM.from_pretrained(pretrained.CHECKPOINTS / "base", dtype=torch.float32)
    model = model.to(device).eval()
    ids = torch.tensor([prompt], device=device)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return timing.measure(lambda: model.generate(ids, **length), device=device, repeats=7)


def commit() -> str | None:
    """The checkout's commit; None where there is none."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


if __name__ == "__main__":
    main()
