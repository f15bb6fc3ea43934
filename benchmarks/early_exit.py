"""Self-speculation from an early exit beside the decode engine: the first layers draft, all of them verify.

In one process, and in turns, as `speculative.py` does: the greedy speed-up over `DecodeEngine` for one text,
by domain, with the exit and the number of drafts that were fastest on other prompts; once with the cache
shared, so that verification begins where drafting ended, and once with a cache of the drafter's own. Beside
each what theory says from the costs measured, and from the layers alone; and whether greedy texts are the
same, in fp32.

    python benchmarks/early_exit.py [--model base] [--heads FOLDER | none] [--parts parity,speed]

Lines go to benchmarks/results/<device>.jsonl; those of all exits and draft lengths to its folder `raw`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import speculative
import torch
from record import record, record_raw, rounded

from llmcourse import add_ons, hardware, pretrained, prompts
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.early_exit.heads import ExitHeads
from llmcourse.early_exit.stored import EXIT_HEADS, load_heads
from llmcourse.model import Decoder
from llmcourse.speculative import theory
from llmcourse.speculative.engine import SpeculativeEngine

GAMMAS = (1, 2, 3, 5)
CACHES = {"shared": "early_exit", "own": "early_exit_own_cache"}  # and the names of their rows
PARITY_PROMPTS, PARITY_GAMMA = 100, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base")
    parser.add_argument("--heads", help="a folder, or none for the model's own head; else the embedded ones")
    parser.add_argument("--layers", help="exits to try, by comma; all if left out")
    parser.add_argument("--gammas", default=",".join(map(str, GAMMAS)))
    parser.add_argument("--parts", default="parity,speed")
    arguments = parser.parse_args()
    device, source = hardware.default_device(), (arguments.model, arguments.heads)
    layers = [int(layer) for layer in arguments.layers.split(",")] if arguments.layers else None
    trained = None if arguments.heads == "none" else notes(arguments.heads or arguments.model)
    if "parity" in arguments.parts:
        heads, encode = load(*source, device, torch.float32)
        name = speculative.label(arguments.model, heads.backbone)
        report_parity(heads, encode, name, layers or heads.layers, trained)
        del heads
    if "speed" in arguments.parts:
        heads, encode = load(*source, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        name = speculative.label(arguments.model, heads.backbone)
        gammas = [int(gamma) for gamma in arguments.gammas.split(",")]
        report_speed(heads, encode, name, layers or heads.layers, gammas, trained)


def load(
    name: str, heads: str | None, device: torch.device, dtype: torch.dtype
) -> tuple[ExitHeads, Callable]:
    """The exits with their model, and how a text becomes tokens: each begins as documents did in training."""
    model, tokenizer = pretrained.load(name, device=device, dtype=dtype)
    found = ExitHeads(model).eval() if heads == "none" else load_heads(heads or name, model)
    return found, lambda text: tokenizer.encode("<|endoftext|>" + text)


def notes(source: str) -> dict[str, Any]:
    """How exits, and the backbone with them, were trained: a model from a folder goes by its size alone."""
    return add_ons.describe(EXIT_HEADS, source).notes


def report_parity(
    heads: ExitHeads, encode: Callable, name: str, layers: Sequence[int], trained: dict | None = None
) -> None:
    """The share of prompts that every exit's engine continues as decoding does; the cache is shared."""
    plain = DecodeEngine(heads.backbone)
    texts = [encode(text) for text in prompts.one_hundred()][:PARITY_PROMPTS]
    different = []
    for layer in layers:
        ours = engine(heads.backbone, heads.folded(layer), PARITY_GAMMA, "shared")
        different += [[layer, number] for number in speculative.differing(plain, ours, texts)]
    total = len(texts) * len(layers)
    record(
        "early_exit_parity",
        1 - len(different) / total,
        "share of texts",
        limit=1.0,
        limit_name="all texts",
        device=plain.device,
        num_prompts=len(texts),
        new_tokens=speculative.PARITY_TOKENS,
        layers=list(layers),
        gamma=PARITY_GAMMA,
        different=different[:20],
        target=name,
        trained=trained,
    )


def engine(model: Decoder, exit_: Decoder, gamma: int, cache: str) -> SpeculativeEngine:
    return SpeculativeEngine(model, exit_, draft_length=gamma, shared_cache=cache == "shared")


def report_speed(
    heads: ExitHeads,
    encode: Callable,
    name: str,
    layers: Sequence[int],
    gammas: Sequence[int],
    trained: dict | None = None,
) -> None:
    """By domain: exit and draft length are chosen on a quarter of the prompts, and timed on the others."""
    model = heads.backbone
    plain, exits = DecodeEngine(model), {layer: heads.folded(layer) for layer in layers}
    for domain, openings in speculative.DOMAINS.items():
        texts = [encode(text) for text in openings()]
        others = [[text] for number, text in enumerate(texts) if number % 4]
        for cache, kind in CACHES.items():
            speed_ups = {}
            for layer, exit_ in exits.items():
                for gamma in gammas:
                    ours = engine(model, exit_, gamma, cache)
                    found = speculative.race(plain, ours, [[text] for text in texts[::4]], 0.0)
                    row = described(found, layer, name, cache, model) | {"trained": trained}
                    speed_ups[layer, gamma] = found.speed_up
                    record_raw(
                        "early_exit", plain.device, name=domain, speed_up=rounded(found.speed_up), **row
                    )
            layer, gamma = max(speed_ups, key=lambda pair: speed_ups[pair])
            final = speculative.race(plain, engine(model, exits[layer], gamma, cache), others, 0.0)
            row = described(final, layer, name, cache, model) | {"trained": trained}
            speculative.report(f"{kind}_{domain}_b1", final, plain.device, row)


def described(
    found: speculative.Race, layer: int, name: str, cache: str, model: Decoder
) -> dict[str, object]:
    """A race; c of a shared cache counts the last draft's pass, and v is of the other layers alone."""
    c = cost_by_layers(model, layer)
    row = speculative.described(found, [name, f"its first {layer} layers"])
    if cache == "shared":  # these are for a pass over all layers
        del row["predicted_v1"], row["measured_over_predicted_v1"]
    return row | {
        "layer": layer,
        "cache": cache,
        "tokens_a_step": rounded(found.tokens_a_step),
        "c_by_layers": rounded(c),
        "predicted_by_layers": rounded(theory.speed_up(found.tally.rate, found.gamma, c)),
    }


def cost_by_layers(model: Decoder, layer: int) -> float:
    """c if a pass takes as long as its weights are large: k layers and a head, by all layers and a head.

    Whether the cache is shared makes no difference here: the layers that verification is spared read the last
    draft instead, and their weights once in either way.
    """
    one, head = (
        sum(weight.numel() for weight in part.parameters()) for part in (model.model.layers[0], model.lm_head)
    )
    return (layer * one + head) / (model.config.num_layers * one + head)


if __name__ == "__main__":
    main()
