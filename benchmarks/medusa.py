"""Medusa beside the decode engine: how much faster, by domain, and what reading a tree of drafts takes.

In one process, and in turns, as `speculative.py` does: the greedy speed-up over `DecodeEngine` for one text,
with the tree that was found on what the model itself writes to other prompts; and a step that reads 64 tokens
in a tree beside a step of one token, with Llama-3-8B's shapes and random weights in bfloat16.

    python benchmarks/medusa.py [--model base] [--heads FOLDER] [--parts speed,tree]

Lines go to benchmarks/results/<device>.jsonl; those of all sizes of trees to its folder `raw`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import speculative
import torch
from large_models import NEW, PROMPT, random_model, random_prompts
from record import record, record_raw, rounded

from llmcourse import hardware, pretrained
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import KernelSettings, StepState
from llmcourse.model import Decoder
from llmcourse.speculative.medusa.candidates import MedusaTree, sparse
from llmcourse.speculative.medusa.engine import MedusaEngine
from llmcourse.speculative.medusa.heads import MedusaHeads
from llmcourse.speculative.medusa.reading import mask_of
from llmcourse.speculative.medusa.search import rank_accuracies, ranks_behind, search
from llmcourse.speculative.medusa.stored import load_heads

SIZES = (3, 7, 15, 31, 63)  # nodes; with the root a multiple of what kernels take at once
TREE_TOKENS = 64
SETTINGS = {
    "default": KernelSettings(),
    "PyTorch's products": KernelSettings(few_rows=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base")
    parser.add_argument("--heads", help="a folder; the embedded ones of the model if left out")
    parser.add_argument("--parts", default="speed,tree")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="of trees, in nodes")
    arguments = parser.parse_args()
    device, parts = hardware.default_device(), arguments.parts.split(",")
    if "speed" in parts:
        model, heads, encode = load(arguments.model, arguments.heads, device)
        name = speculative.label(arguments.model, model)
        report_speed(model, heads, encode, name, [int(size) for size in arguments.sizes.split(",")])
    if "tree" in parts and device.type == "cuda":
        report_tree(device)


def load(name: str, heads: str | None, device: torch.device) -> tuple[Decoder, MedusaHeads, Callable]:
    """The backbone, its heads, and how a text becomes tokens: each begins as documents did in training."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = pretrained.load(name, device=device, dtype=dtype)
    found = load_heads(heads or name, model)
    return model, found, lambda text: tokenizer.encode("<|endoftext|>" + text)


def report_speed(
    model: Decoder, heads: MedusaHeads, encode: Callable, name: str, sizes: Sequence[int]
) -> None:
    """By domain: the tree and its size are chosen on a quarter of the prompts, and timed on the others."""
    plain = DecodeEngine(model)
    for domain, openings in speculative.DOMAINS.items():
        texts = [encode(text) for text in openings()]
        shares = rank_accuracies(own_ranks(plain, heads, texts[::4]))
        tried = []
        for size in sizes:
            engine = MedusaEngine(model, heads, search(shares, size))
            found = speculative.race(plain, engine, [[text] for text in texts[::4]], 0.0)
            note(domain, found, engine.tree, name, model.device)
            tried.append((found.speed_up, engine))
        engine = max(tried, key=lambda pair: pair[0])[1]
        others = [[text] for number, text in enumerate(texts) if number % 4]
        report(domain, speculative.race(plain, engine, others, 0.0), engine.tree, name, model.device)


def own_ranks(plain: DecodeEngine, heads: MedusaHeads, texts: Sequence[list[int]]) -> torch.Tensor:
    """`ranks_behind` prompts of what the model writes greedily, which its heads will be asked to guess."""
    ranks = []
    for text in texts:
        plain.start([text], len(text) + speculative.TOKENS)
        written = plain.decode(speculative.TOKENS)[0].tolist()
        ranks.append(ranks_behind(plain.model, heads, text, written))
    return torch.cat(ranks)


def described(found: speculative.Race, tree: MedusaTree, name: str) -> dict[str, object]:
    """`heads` and `tree` are what a step's parts take alone, in plain tokens."""
    return {
        "nodes": len(tree),
        "depth": tree.depth,
        "tokens_a_step": rounded(found.tokens_a_step),
        "heads": rounded(found.draft_s / found.token_s),
        "tree": rounded(found.verify_s / found.token_s),
        "token_ms": rounded(found.token_s * 1e3),
        "new_tokens": speculative.TOKENS,
        "target": name,
    }


def predicted(found: speculative.Race) -> float:
    """A step's tokens over what its two parts take, in plain tokens."""
    return found.tokens_a_step * found.token_s / (found.draft_s + found.verify_s)


def note(domain: str, found: speculative.Race, tree: MedusaTree, name: str, device: torch.device) -> None:
    record_raw(
        "medusa", device, name=domain, speed_up=rounded(found.speed_up), **described(found, tree, name)
    )


def report(domain: str, found: speculative.Race, tree: MedusaTree, name: str, device: torch.device) -> None:
    record(
        f"medusa_{domain}_b1",
        found.speed_up,
        "speed-up",
        limit=predicted(found),
        limit_name="tokens a step over what heads and tree take alone",
        peer="DecodeEngine",
        peer_value=1.0,
        spread=found.spread,
        device=device,
        **described(found, tree, name),
    )


def report_tree(device: torch.device, settings: Mapping[str, KernelSettings] = SETTINGS) -> None:
    """A step of one token over one of 64 in a tree, in the midst of a text; all settings in turns."""
    model = random_model("llama3_8b")
    tree = MedusaTree(sparse(4, 6).choices[: TREE_TOKENS - 1])
    state = StepState(model, 1, PROMPT + NEW + TREE_TOKENS, torch.Tensor.contiguous)
    with torch.no_grad():
        prefill(state, random_prompts(model, 1))
        state.positions.fill_(PROMPT + NEW // 2)
        mask = mask_of(tree.tree, device)
        steps = speculative.ways_to_read(state, settings, TREE_TOKENS, mask)
    unit = "one-token time over the time of a tree of 64 tokens"
    speculative.report_reading("tree64", unit, steps, device)


if __name__ == "__main__":
    main()
