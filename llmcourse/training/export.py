"""Trained weights to a checkpoint folder in Hugging Face layout, with its model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmcourse.model import Decoder, DecoderConfig
from llmcourse.training.evaluate import Loss
from llmcourse.training.recipes import MIX, Recipe
from llmcourse.training.tokenizer import END_OF_TEXT

MAX_SHARD_BYTES = 12 * 2**20

# What the card says of languages, of what is continued, and of rights: of the course's own domains
# it is known, of a reader's text it is not.
COURSE_TEXT = (
    "language: [en, zh]\n",
    """It continues English prose of
the 19th century, classical Chinese poems (`《title》author`, then the lines) and Python source.""",
    """The prose and the poems are in the public domain by
age; the Python source belongs to its authors under their open-source licences.""",
)
OTHER_TEXT = (
    "",
    "It continues text like\nthat of the domains below.",
    "The text that it was\ntrained on remains under the terms of its authors.",
)


@dataclass(frozen=True)
class DomainReport:
    """What the model card says of one domain."""

    name: str
    origin: str
    train_documents: int
    train_tokens: int
    held_out_documents: int
    held_out_chars: int
    loss: Loss


@dataclass(frozen=True)
class RunReport:
    """What the model card says of the run."""

    recipe: Recipe
    domains: list[DomainReport]
    device: str  # "one NVIDIA H200", "4 NVIDIA H200"
    versions: dict[str, str]
    train_s: float


def check_replaceable(folder: Path) -> None:
    """Refuses a folder that holds something else than a checkpoint, for it would be removed.

    Raises:
        FileExistsError: there is such a folder, or a file.
    """
    is_checkpoint = (folder / "config.json").is_file()
    if folder.exists() and not is_checkpoint and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is no checkpoint, and would be replaced; use another output folder")


def export(model: Decoder, tokenizer_path: Path, report: RunReport, folder: Path) -> None:
    """Writes weights in bf16, configuration, tokenizer and model card, replacing the folder.

    Raises:
        FileExistsError: the folder holds something else than a checkpoint.
    """
    check_replaceable(folder)
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write_weights(model, new)
    write_json(new / "config.json", hugging_face_config(model.config))
    write_json(new / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1})
    shutil.copyfile(tokenizer_path, new / "tokenizer.json")
    write_json(new / "tokenizer_config.json", tokenizer_config(model.config))
    (new / "README.md").write_text(model_card(model, report), encoding="utf-8")
    for file in new.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone
    new.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(model: Decoder, folder: Path) -> None:
    """Safetensors files of at most `MAX_SHARD_BYTES`, and an index when there are several."""
    state = model.state_dict()
    state = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in state.items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    shards = into_shards(state)
    if len(shards) == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(t.nbytes for t in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)


def into_shards(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Tensors in their order, a new shard whenever the next one would not fit."""
    shards, held = [{}], 0
    for name, tensor in state.items():
        if held and held + tensor.nbytes > MAX_SHARD_BYTES:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    return shards


def hugging_face_config(config: DecoderConfig) -> dict:
    """`config.json` of a Llama model, as both transformers 4 and 5 read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "dtype": "bfloat16",
    }


def tokenizer_config(config: DecoderConfig) -> dict:
    """What transformers' `AutoTokenizer` needs beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": "<|pad|>",
        "mask_token": "<|mask|>",
        "sep_token": "<|sep|>",
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }


def model_card(model: Decoder, report: RunReport) -> str:
    """The card: data, recipe, validation loss per domain, licence, limits."""
    c, r = model.config, report.recipe
    tokenizer_line = f"byte-level BPE, {c.vocab_size:,} tokens, shared by the family"
    total = sum(r.weight(d.name) for d in report.domains)
    data = "\n".join(
        f"| {d.name} | {d.origin} | {d.train_documents:,} | {d.train_tokens / 1e6:.1f} M | "
        f"{r.weight(d.name) / total:.0%} |"
        for d in report.domains
    )
    losses = "\n".join(
        f"| {d.name} | {d.held_out_documents:,} | {d.held_out_chars:,} | "
        f"{d.loss.nats_per_token:.3f} | {d.loss.bits_per_char:.3f} |"
        for d in report.domains
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    precision = "bf16 autocast" if model.device.type == "cuda" else "fp32"
    ours = {d.name for d in report.domains} == set(MIX)
    languages, about, rights = COURSE_TEXT if ours else OTHER_TEXT
    return f"""---
license: mit
{languages}library_name: transformers
---

# {r.name}: a decoder of {model.num_parameters / 1e6:.1f} million parameters

A small language model for teaching how language models are deployed. {about} It
follows no instructions and knows no facts to rely on.

## Model

Llama architecture (RMSNorm, RoPE, grouped-query attention, SwiGLU, tied embeddings), bf16.

| layers | hidden | feed-forward | heads / key-value heads | context | tokenizer |
|---|---|---|---|---|---|
| {c.num_layers} | {c.hidden_size} | {c.intermediate_size} | {c.num_heads} / {c.num_kv_heads} \
| {c.max_position_embeddings} | {tokenizer_line} |

## Data

| domain | origin | documents | tokens | share of a batch |
|---|---|---|---|---|
{data}

Validation documents were set aside by a hash of their text, before the tokenizer was trained, and no
document stands on both sides. Running text is held out in passages of about 32,000 characters and trained
on in passages of about 8,000, so other passages of the same book are in the training text; packages repeat
each other's code, so a held-out file may resemble one that was seen.

## Recipe

{r.steps:,} steps of {r.batch_size} × {r.sequence_length:,} tokens ({r.tokens / 1e6:,.0f} million in all). \
Muon ({r.matrix_lr:g}) for the matrices inside the layers, AdamW ({r.other_lr:g}) for the rest, weight decay \
{r.weight_decay:g}, {r.warmup} steps of warm-up, then linear decay to zero, {precision}, seed {r.seed}. \
{report.train_s:.0f} s on {report.device}; {versions}.

## Validation loss

Measured on these weights as stored, in windows of {c.max_position_embeddings:,} tokens.

| domain | documents | characters | nats per token | bits per character |
|---|---|---|---|---|
{losses}

## Licence

The weights are released under the MIT licence. {rights} No text is part of
this repository.
"""
