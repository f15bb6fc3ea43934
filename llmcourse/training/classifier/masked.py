"""Masked language modelling: a part of the tokens is hidden, and the encoder fills them in from both sides.

Of every row 15 % of the tokens are asked for; of those 80 % are replaced by the mask, 10 % by a random token,
and 10 % stay as they are (Devlin et al. 2019, section 3.1). The number is the same in every row, so that all
shapes are fixed; which tokens they are is drawn anew at every step, on the device. Special tokens are no
words: they are not drawn, and where a row holds too few others they are neither hidden nor asked for.

The same rows are pairs of passages, and the first token's state says whether they belong together
(`next_passage`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmcourse import pretrained
from llmcourse.early_exit.classifier.encoder import MASK, NUM_SPECIAL, START, Encoder, encoder_shape
from llmcourse.training.classifier.next_passage import GAP, follows_loss, pair_rows
from llmcourse.training.classifier.setting import Setting
from llmcourse.training.muon import BatchedMuon
from llmcourse.training.paced import Pace, autocast, train
from llmcourse.training.tokenizer import load_tokenizer
from llmcourse.training.tokens import Domain, batch, encode_documents, shares

ASKED, MASKED, REPLACED = 0.15, 0.8, 0.1
NOBODY = -100  # in place of a token that is not asked for
MIX = {"text": 0.4, "blocks": 0.25, "python": 0.35}  # share of a batch, by kind of text
ASKED_AFTER = 20  # batches after training, to see how many pairs are told apart


def hide(
    rows: Int[Tensor, "B T"], vocab_size: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B M"]]:
    """The rows with some tokens hidden, and the places that are asked for.

    Args:
        generator: on the device of the rows.
    """
    draw = torch.rand(rows.shape, generator=generator, device=rows.device)
    draw = torch.where(rows < NUM_SPECIAL, -1.0, draw)
    places = draw.topk(max(1, round(ASKED * rows.shape[1])), dim=1).indices
    kind = torch.rand(places.shape, generator=generator, device=rows.device)
    size = (NUM_SPECIAL, vocab_size)
    others = torch.randint(*size, places.shape, generator=generator, device=rows.device)
    own = rows.gather(1, places)
    shown = torch.where(kind < MASKED, MASK, own)
    shown = torch.where((kind >= MASKED) & (kind < MASKED + REPLACED), others, shown)
    shown = torch.where(own < NUM_SPECIAL, own, shown)
    return rows.scatter(1, places, shown), places


def masked_loss(
    encoder: Encoder,
    states: Float[Tensor, "B T C"],
    places: Int[Tensor, "B M"],
    rows: Int[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the tokens that are asked for, special ones left out.

    Args:
        states: of the rows with their tokens hidden.
        rows: as they were.
    """
    chosen = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
    logits = encoder.token_logits(chosen).float()
    asked = rows.gather(1, places).flatten().long()
    asked = torch.where(asked < NUM_SPECIAL, NOBODY, asked)
    return F.cross_entropy(logits.flatten(0, 1), asked, ignore_index=NOBODY)


def pair_loss(
    encoder: Encoder,
    head: nn.Linear,
    hidden: Int[Tensor, "B T"],
    places: Int[Tensor, "B M"],
    rows: Int[Tensor, "B T"],
    follows: Bool[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Both objectives, the second by a head on the first token's state."""
    states = encoder(hidden)
    return masked_loss(encoder, states, places, rows) + follows_loss(head, states, follows)


def pretrain(
    documents: Mapping[str, Sequence[str]],
    setting: Setting,
    pace: Pace,
    device: torch.device,
    *,
    seed: int = 0,
    compiled: bool = False,
    recorded: bool = False,
) -> Encoder:
    """An encoder over `draft`'s embeddings that fills in masked tokens, and tells which passages follow.

    Args:
        documents: by kind, as in `MIX`.
        compiled: its layers, one by one with `torch.compile`.
        recorded: a step as a CUDA graph.

    Raises:
        ValueError: too little text of a kind.
        FloatingPointError, KeyboardInterrupt: as `paced.train`.
    """
    draft = pretrained.load("draft").model
    shape = encoder_shape(draft.config.vocab_size, draft.config.hidden_size, setting.num_layers)
    encoder = Encoder(shape, draft.model.embed_tokens.weight)
    encoder.init_weights(seed)
    encoder.to(device)
    domains = _domains(documents, device)
    if compiled:
        for layer in encoder.layers:
            layer.compile()
    head = _head(encoder, seed)
    rows = _masked_rows(domains, setting, shape.vocab_size, device, seed)
    loss_of = lambda *rows: pair_loss(encoder, head, *rows)  # noqa: E731
    optimizers = _optimizers(encoder, head, setting)
    steps, loss, time_s = train("pre-training", loss_of, rows, optimizers, pace, device, recorded=recorded)
    seen, right = steps * setting.rows * setting.length, _right(encoder, head, rows)
    print(
        f"pre-training: {steps} steps in {time_s:.0f} s, {seen / 1e6:.1f} M tokens, loss {loss:.3f}, "
        f"{right:.1%} of pairs right",
        flush=True,
    )
    return encoder


def _head(encoder: Encoder, seed: int) -> nn.Linear:
    """What says from the first token's state whether passages belong together; thrown away afterwards."""
    head = nn.Linear(encoder.config.hidden_size, 2)
    deviation, generator = 0.02, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0, deviation, generator=generator)
        head.bias.zero_()
    return head.to(encoder.device)


@torch.no_grad()
def _right(encoder: Encoder, head: nn.Linear, rows: Iterator[tuple[Tensor, ...]]) -> float:
    """Share of pairs that are told apart, of batches that were not trained on."""
    found = []
    for hidden, _, _, follows in islice(rows, ASKED_AFTER):
        with autocast(encoder.device):
            found.append((head(encoder(hidden)[:, 0]).argmax(-1) == follows).float().mean())
    return torch.stack(found).mean().item()


def _domains(documents: Mapping[str, Sequence[str]], device: torch.device) -> list[Domain]:
    """Their tokens; `<|pad|>` or `<|sep|>` in a text is text, as it is in fine-tuning (`encode_plain`)."""
    tokenizer = load_tokenizer(pretrained.find_checkpoint("draft") / "tokenizer.json")
    tokenizer.encode_special_tokens = True
    domains = []
    for kind, texts in documents.items():
        array = encode_documents(tokenizer, texts, START, kind)
        domains.append(Domain(kind, torch.from_numpy(array.astype("int32")).to(device), START))
    return domains


def _optimizers(encoder: Encoder, head: nn.Linear, setting: Setting) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest, as for the decoders (`optimizer`)."""
    inner = [p for p in encoder.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inner}
    others = [p for p in encoder.parameters() if p.requires_grad and id(p) not in chosen]
    others += head.parameters()
    muon = BatchedMuon(inner, lr=setting.matrix_lr, weight_decay=0.1)
    more = {"betas": (0.9, 0.95), "weight_decay": 0.0, "fused": others[0].is_cuda}
    return [muon, torch.optim.AdamW(others, setting.other_lr, **more)]


def _masked_rows(
    domains: list[Domain], setting: Setting, vocab_size: int, device: torch.device, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    weights = [MIX[domain.name] for domain in domains]
    kinds = shares(weights, setting.rows)
    generator, step = torch.Generator(device).manual_seed(seed), 0
    while True:
        windows = batch(domains, weights, step, setting.rows, setting.length + GAP, seed=seed)
        rows, follows = pair_rows(windows, kinds, generator)
        yield (*hide(rows, vocab_size, generator), rows, follows)
        step += 1
