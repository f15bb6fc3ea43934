"""Self-speculation from an early exit beside the decode engine: the first layers draft, all of them verify.

In one process, and in turns, as `speculative.py` does: the greedy speed-up over `DecodeEngine` for one text,
by domain, with the exit and the number of drafts that were fastest on other prompts.

    python benchmarks/early_exit.py [--model base] [--heads FOLDER]

Lines go to benchmarks/results/<device>.jsonl; those of all exits and draft lengths to its folder `raw`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import speculative
import torch
from record import record_raw, rounded

from llmcourse import hardware, pretrained
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.early_exit.heads import ExitHeads
from llmcourse.early_exit.stored import load_heads
from llmcourse.speculative.engine import SpeculativeEngine

GAMMAS = (1, 2, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base")
    parser.add_argument("--heads", help="a folder; the embedded ones of the model if left out")
    parser.add_argument("--layers", help="exits to try, by comma; all if left out")
    parser.add_argument("--gammas", default=",".join(map(str, GAMMAS)))
    arguments = parser.parse_args()
    heads, encode = load(arguments.model, arguments.heads, hardware.default_device())
    layers = [int(layer) for layer in arguments.layers.split(",")] if arguments.layers else heads.layers
    gammas = [int(gamma) for gamma in arguments.gammas.split(",")]
    report_speed(heads, encode, speculative.label(arguments.model, heads.backbone), layers, gammas)


def load(name: str, heads: str | None, device: torch.device) -> tuple[ExitHeads, Callable]:
    """The exits with their model, and how a text becomes tokens: each begins as documents did in training."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = pretrained.load(name, device=device, dtype=dtype)
    return load_heads(heads or name, model), lambda text: tokenizer.encode("<|endoftext|>" + text)


def report_speed(
    heads: ExitHeads, encode: Callable, name: str, layers: Sequence[int], gammas: Sequence[int]
) -> None:
    """By domain: exit and draft length are chosen on a quarter of the prompts, and timed on the others."""
    plain = DecodeEngine(heads.backbone)
    engines = {
        (layer, gamma): SpeculativeEngine(heads.backbone, heads.folded(layer), draft_length=gamma)
        for layer in layers
        for gamma in gammas
    }
    for domain, openings in speculative.DOMAINS.items():
        texts = [encode(text) for text in openings()]
        speed_ups = {}
        for (layer, gamma), engine in engines.items():
            found = speculative.race(plain, engine, [[text] for text in texts[::4]], 0.0)
            row = described(found, layer, name)
            record_raw("early_exit", plain.device, name=domain, speed_up=rounded(found.speed_up), **row)
            speed_ups[layer, gamma] = found.speed_up
        best = max(speed_ups, key=lambda pair: speed_ups[pair])
        others = [[text] for number, text in enumerate(texts) if number % 4]
        final = speculative.race(plain, engines[best], others, 0.0)
        row = described(final, best[0], name)
        speculative.report(f"early_exit_{domain}_b1", final, plain.device, row)


def described(found: speculative.Race, layer: int, name: str) -> dict[str, object]:
    return {"layer": layer} | speculative.described(found, [name, f"its first {layer} layers"])


if __name__ == "__main__":
    main()
