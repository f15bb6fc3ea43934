"""Muon for the matrices inside the layers, AdamW for embeddings and norms.

Muon (Jordan et al. 2024) makes every singular value of a matrix's update about equal, which at
this size reaches a given loss in fewer steps than AdamW alone; the rate is scaled as Liu et al.
2025 (section 2.2) propose, so that one value suits matrices of all shapes.
"""

from __future__ import annotations

import torch
from torch import nn

from llmcourse.training.muon import BatchedMuon
from llmcourse.training.recipes import Recipe


def build_optimizers(
    model: nn.Module, recipe: Recipe, muon_class: type[BatchedMuon] = BatchedMuon
) -> list[torch.optim.Optimizer]:
    """One optimizer for each kind of parameter."""
    outer = ("embed_tokens.weight", "lm_head.weight")
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and not n.endswith(outer)]
    chosen = {id(p) for p in inner}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = muon_class(inner, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay)
    fused = others[0].is_cuda
    adamw = torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
    return [muon, adamw]


def schedule(step: int, recipe: Recipe) -> float:
    """The share of the peak rate at a step: linear up, then linear to zero (Bergsma et al. 2025)."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return (recipe.steps - step) / max(1, recipe.steps - recipe.warmup)


def set_rates(optimizers: list[torch.optim.Optimizer], step: int, recipe: Recipe) -> None:
    """Writes this step's rates into the optimizers."""
    share = schedule(step, recipe)
    for optimizer, peak in zip(optimizers, (recipe.matrix_lr, recipe.other_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * share
