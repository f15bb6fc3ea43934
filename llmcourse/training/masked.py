"""Masked language modelling: a part of the tokens is hidden, and the encoder fills them in from both sides.

Of every row 15 % of the tokens are asked for; of those 80 % are replaced by the mask, 10 % by a random token,
and 10 % stay as they are (Devlin et al. 2019, section 3.1). The number is the same in every row, so that all
shapes are fixed; which tokens they are is drawn anew at every step, on the device. Special tokens are no
words: they are not drawn, and where a row holds too few others they are neither hidden nor asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse import pretrained
from llmcourse.early_exit.classifier.encoder import MASK, NUM_SPECIAL, START, Encoder, encoder_shape
from llmcourse.training.exit_setting import Setting
from llmcourse.training.muon import BatchedMuon
from llmcourse.training.paced import Pace, train
from llmcourse.training.tokenizer import load_tokenizer
from llmcourse.training.tokens import Domain, batch, encode_documents

ASKED, MASKED, REPLACED = 0.15, 0.8, 0.1
NOBODY = -100  # in place of a token that is not asked for
MIX = {"text": 0.4, "blocks": 0.25, "python": 0.35}  # share of a batch, by kind of text


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
    encoder: Encoder, hidden: Int[Tensor, "B T"], places: Int[Tensor, "B M"], rows: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the tokens that are asked for, special ones left out."""
    states = encoder(hidden)
    chosen = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
    logits = encoder.token_logits(chosen).float()
    asked = rows.gather(1, places).flatten().long()
    asked = torch.where(asked < NUM_SPECIAL, NOBODY, asked)
    return F.cross_entropy(logits.flatten(0, 1), asked, ignore_index=NOBODY)


def pretrain(
    documents: Mapping[str, Sequence[str]],
    setting: Setting,
    pace: Pace,
    device: torch.device,
    *,
    seed: int = 0,
    compiled: bool = False,
) -> Encoder:
    """An encoder over `draft`'s embeddings that fills in masked tokens.

    Args:
        documents: by kind, as in `MIX`.
        compiled: its layers, one by one with `torch.compile`.

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
    rows = _masked_rows(domains, setting, shape.vocab_size, device, seed)
    loss_of = lambda hidden, places, whole: masked_loss(encoder, hidden, places, whole)  # noqa: E731
    steps, loss, _ = train("pre-training", loss_of, rows, _optimizers(encoder, setting), pace, device)
    seen = steps * setting.rows * setting.length
    print(f"pre-training: {steps} steps, {seen / 1e6:.1f} M tokens, loss {loss:.3f}", flush=True)
    return encoder


def _domains(documents: Mapping[str, Sequence[str]], device: torch.device) -> list[Domain]:
    tokenizer = load_tokenizer(pretrained.find_checkpoint("draft") / "tokenizer.json")
    domains = []
    for kind, texts in documents.items():
        array = encode_documents(tokenizer, texts, START, kind)
        domains.append(Domain(kind, torch.from_numpy(array.astype("int32")).to(device), START))
    return domains


def _optimizers(encoder: Encoder, setting: Setting) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest, as for the decoders (`optimizer`)."""
    inner = [p for p in encoder.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inner}
    others = [p for p in encoder.parameters() if p.requires_grad and id(p) not in chosen]
    muon = BatchedMuon(inner, lr=setting.matrix_lr, weight_decay=0.1)
    more = {"betas": (0.9, 0.95), "weight_decay": 0.0, "fused": others[0].is_cuda}
    return [muon, torch.optim.AdamW(others, setting.other_lr, **more)]


def _masked_rows(
    domains: list[Domain], setting: Setting, vocab_size: int, device: torch.device, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    weights = [MIX[domain.name] for domain in domains]
    generator, step = torch.Generator(device).manual_seed(seed), 0
    while True:
        rows = batch(domains, weights, step, setting.rows, setting.length, seed=seed)
        rows[:, 0] = START  # as every row of the tasks begins
        yield (*hide(rows, vocab_size, generator), rows)
        step += 1
