"""A target for the benchmark of speculation, larger than what ships with the course: trained in minutes.

On the same kinds of text, with the family's tokenizer, so that its models can draft for it. Then the smallest
of them is tuned to it: for a short time it learns the target's distributions in place of the text's next
tokens (Zhou et al. 2024, DistillSpec, section 4.1), so that more of its drafts stand.

    python benchmarks/train_target.py --text prose=prose.txt --blocks poetry=poems.txt \\
        --python code=/usr/lib/python3 --out FOLDER [--shape narrow] [--minutes 4] [--tune-minutes 0.5]
    python benchmarks/speculative.py --target FOLDER/target --drafter FOLDER/drafter

Of the two shapes the narrow one learns more in the same time. In a pass over the wide one, with layers as
large as those of Llama-3-8B, reading the weights takes nearly all of the time, as in the models that people
speculate with: several tokens then take as long as one, and a draft of the small model hardly any time.

The number of steps is what fits into the time, by the speed of the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcourse import pretrained
from llmcourse.arguments import Parser
from llmcourse.hardware import default_device
from llmcourse.model import Decoder
from llmcourse.training.backbone import prepare_for, rows_of
from llmcourse.training.evaluate import HeldOut, evaluate
from llmcourse.training.export import hugging_face_config, tokenizer_config, write_json, write_weights
from llmcourse.training.family import Corpus, held_out_ids, work_folder
from llmcourse.training.optimizer import build_optimizers, set_rates
from llmcourse.training.options import add_text_options, minutes, read_corpus
from llmcourse.training.pretrain import NextTokenLoss, init_weights, update
from llmcourse.training.recipes import Recipe, shape
from llmcourse.training.text import shorten, split
from llmcourse.training.tokenizer import load_tokenizer
from llmcourse.training.tokens import Domain, encode_documents

TARGET = replace(shape(2048, 8, 6144, 16, 4), head_dim=128)
NARROW = Recipe("target", TARGET, steps=1, batch_size=32, matrix_lr=0.003, other_lr=0.002, warmup=60)
WIDE = replace(NARROW, model=shape(4096, 4, 14336, 32, 8), matrix_lr=0.002, other_lr=0.0015)
RECIPES = {"narrow": NARROW, "wide": WIDE}
TUNING = Recipe("drafter", TARGET, steps=1, batch_size=24, matrix_lr=0.002, other_lr=0.001, warmup=20)
MEASURED = 64 * 1024  # tokens of a domain, at most
TIMED = (8, 16)  # steps by which the speed is told; compiling is over by the first of them


def parser() -> Parser:
    result = Parser(prog="train_target.py", description=__doc__.split("\n")[0])
    add_text_options(result)
    result.add_argument("--out", type=Path, required=True, help="folder for both models")
    prepared = "folder of the prepared texts, if others share them; made anew otherwise"
    result.add_argument("--prepared", type=Path, help=prepared)
    result.add_argument("--shape", choices=RECIPES, default="narrow", help="of the target")
    result.add_argument("--minutes", type=minutes, default=4.0, help="of the target's training")
    tuning = "of the drafter's; 0 leaves it out"
    result.add_argument("--tune-minutes", type=float, default=0.5, help=tuning)
    return result


def main() -> None:
    options = parser().parse_args()
    device, folder = default_device(), pretrained.find_checkpoint("draft")
    if options.prepared:
        domains, held_out = prepared_texts(read_corpus(options), folder, options.prepared, device)
    else:
        domains, held_out = prepare(read_corpus(options), load_tokenizer(folder / "tokenizer.json"), device)
    recipe = RECIPES[options.shape]
    target = Decoder(recipe.model).to(device)
    init_weights(target, recipe.seed)
    spent = train(NextTokenLoss(target), target, recipe, domains, options.minutes * 60)
    target.eval().requires_grad_(False)
    print(f"target: {target.num_parameters / 1e6:.0f} M parameters, {spent}", flush=True)
    for one in held_out:
        print(f"target {one.name}: {evaluate(target, one, length=1024).nats_per_token:.3f} nats per token")
    save(target, folder, options.out / "target")
    drafter = pretrained.load("draft", device=device).model
    report_overlap("drafter as it ships", target, drafter, held_out)
    if options.tune_minutes:
        drafter.train().requires_grad_(True)
        spent = train(Distance(target, drafter), drafter, TUNING, domains, options.tune_minutes * 60)
        print(f"drafter: {spent}", flush=True)
        report_overlap("drafter as it was tuned", target, drafter, held_out)
    save(drafter, folder, options.out / "drafter")


def prepare(corpus: Corpus, tokenizer, device: torch.device):
    """The tokens to train on, and those to be measured by, of every domain."""
    domains, held_out = [], []
    for source in corpus.sources:
        train_side, other = split(source.documents(), corpus.held_out)
        train_side = shorten(train_side) if source.kind == "text" else train_side
        encode = lambda texts, name: encode_documents(tokenizer, texts, 0, name)  # noqa: E731
        tokens = torch.from_numpy(encode(train_side, source.name).astype("int32")).to(device)
        domains.append(Domain(source.name, tokens, 0))
        kept = torch.from_numpy(encode(other, f"{source.name} held out").astype("int32")).to(device)
        held_out.append(HeldOut(source.name, kept[:MEASURED], sum(map(len, other))))
    return domains, held_out


def prepared_texts(corpus: Corpus, folder: Path, prepared: Path, device: torch.device):
    """The same as `prepare`, from a folder where others find it, too."""
    work = work_folder(prepared)
    counts, domains = prepare_for(folder, corpus, work, device)
    kept = {name: held_out_ids(name, work)[:MEASURED].to(device) for name in counts}
    held_out = [HeldOut(name, ids, counts[name]["held_out_chars"]) for name, ids in kept.items()]
    return domains, held_out


@torch.no_grad()
def report_overlap(name: str, target: Decoder, drafter: Decoder, held_out: Sequence[HeldOut]) -> None:
    """How often drafts would stand on text that was held out: Σ min(p, q), and by the likeliest tokens."""
    for one in held_out:
        rows = one.tokens[: len(one.tokens) // 256 * 256].view(-1, 256)[:64]
        p, q = (model(rows).float().softmax(-1) for model in (target, drafter))
        sampled = torch.minimum(p, q).sum(-1).mean().item()
        greedy = (p.argmax(-1) == q.argmax(-1)).float().mean().item()
        print(f"{name}, {one.name}: {sampled:.3f} sampled, {greedy:.3f} greedy", flush=True)


class Distance(nn.Module):
    """The mean divergence KL(p ‖ q) of the drafter's distributions q from the target's p."""

    def __init__(self, target: Decoder, drafter: Decoder):
        super().__init__()
        self.target, self.drafter = target, drafter

    def forward(self, rows: Tensor) -> Tensor:  # (B, T + 1)
        with torch.no_grad():
            log_p = self.target(rows[:, :-1]).float().log_softmax(-1)
        log_q = self.drafter(rows[:, :-1]).float().log_softmax(-1)
        return F.kl_div(log_q.flatten(0, 1), log_p.flatten(0, 1), reduction="batchmean", log_target=True)


def train(
    loss_of: nn.Module, model: Decoder, recipe: Recipe, domains: Sequence[Domain], limit_s: float
) -> str:
    """Steps until the time is up, the rate falling to zero by then; says what they were.

    They are `pretrain`'s. `paced` ends by the clock too, but it clips gradients, rises for a share of the
    time, not for so many steps, and does not count what compiling takes: that makes another target.
    """
    begun, device = time.monotonic(), model.device
    optimizers = build_optimizers(model, recipe)
    forward: Callable[[Tensor], Tensor] = torch.compile(loss_of) if device.type == "cuda" else loss_of
    rows = rows_of(recipe, domains, recipe.sequence_length + 1, device)
    recipe, index, losses = replace(recipe, steps=10**6), 0, []
    while index < recipe.steps:
        if index in TIMED:
            losses[-1].item()  # waits for the device
            moments = (*(moments if index == TIMED[1] else ()), time.monotonic())
        if index == TIMED[1]:
            each_s = (moments[1] - moments[0]) / (TIMED[1] - TIMED[0])
            left = int((limit_s - (moments[1] - begun)) / each_s)
            recipe = replace(recipe, steps=index + max(left, 1))
        set_rates(optimizers, index, recipe)
        losses.append(update(forward, next(rows), optimizers))
        if index % 100 == 0:
            print(f"{recipe.name} step {index} of {recipe.steps}: {losses[-1].item():.3f}", flush=True)
        index += 1
    return (
        f"{index} steps, {recipe.tokens / 1e6:.1f} M tokens in {time.monotonic() - begun:.0f} s, loss of the "
        f"last ten {torch.stack(losses[-10:]).mean().item():.3f}"
    )


def save(model: Decoder, tokenizer_folder: Path, folder: Path) -> None:
    """Writes a checkpoint; `config.json` comes last: where it lies, `chapter_04.sh` takes all for whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(model, folder)
    write_json(folder / "tokenizer_config.json", tokenizer_config(model.config))
    (folder / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    write_json(folder / "config.json", hugging_face_config(model.config))


if __name__ == "__main__":
    main()
