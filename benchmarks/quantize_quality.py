"""What each scheme and bit width costs models of several sizes: perplexity, KL and agreement by domain.

    python benchmarks/quantize_quality.py [MODEL …] [--schemes int8 int4-gptq …]
        [--text prose=prose.txt --blocks poetry=poems.txt --python code=installed]

Models are embedded ones (all of them if none is named) and folders that `train_target.py` wrote, which take
the same kinds of text: run both with the same, for the documents that are held out there are held out here.
Calibration reads documents of the training side, and what is measured is on the other. Without text, models
write prose and verse themselves, and code is that of the running Python (see `llmcourse.quantization.texts`).

A line a model, scheme and domain goes to results/raw/quantize_quality_<device>.jsonl.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from record import record_raw, rounded
from torch import Tensor

from llmcourse import pretrained
from llmcourse.arguments import Parser
from llmcourse.hardware import default_device
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.model import Decoder
from llmcourse.quantization.calibration import windows
from llmcourse.quantization.layers import quantized_layers
from llmcourse.quantization.models import quantize
from llmcourse.quantization.quality import Quality, compare
from llmcourse.quantization.schemes import SCHEMES, scheme_of
from llmcourse.quantization.texts import texts_at_hand, token_stream
from llmcourse.tokenizer import Tokenizer
from llmcourse.training.options import add_text_options, sources_of
from llmcourse.training.text import shorten, split

MOST_CHARS = 2_000_000  # of each side of a domain: more is neither calibrated on nor measured
Texts = dict[str, list[str]]  # by domain


def parser() -> Parser:
    result = Parser(prog="quantize_quality.py", description=__doc__.split("\n")[0])
    result.add_argument("models", nargs="*", help="embedded models and folders (default: all embedded ones)")
    result.add_argument("--schemes", nargs="+", default=list(SCHEMES), help="names (default: all)")
    add_text_options(result)
    result.add_argument("--calibration", type=int, default=128, help="windows of text (default 128)")
    result.add_argument("--windows", type=int, default=64, help="measured of a domain, at most (default 64)")
    result.add_argument("--length", type=int, default=512, help="tokens of a window (default 512)")
    result.add_argument("--device", default=str(default_device()))
    result.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    schemes = [scheme_of(name) for name in options.schemes]
    to_calibrate, to_measure = texts_of(options)
    for name in options.models or pretrained.embedded_names():
        dtype, device = getattr(torch, options.dtype), torch.device(options.device)
        model, tokenizer = pretrained.load(name, device=device, dtype=dtype)
        calibration = rows_of(to_calibrate, tokenizer, options)
        streams = {domain: token_stream(tokenizer, texts) for domain, texts in to_measure.items()}
        for scheme in schemes:
            begun = time.monotonic()
            quantized = quantize(model, scheme, calibration)
            took_s = time.monotonic() - begun
            measured = compare(model, quantized, streams, length=options.length, max_windows=options.windows)
            shared = {"model": label(name), **described(model, quantized), "scheme": scheme.name}
            for quality in measured:
                print(f"{name}, {scheme.name}, {quality}", flush=True)
                record_raw("quantize_quality", device, **shared, **row(quality), quantize_s=rounded(took_s))


def label(name: str) -> str:
    """Of a folder the last two names: `train_target.py` calls each of its own `target`."""
    return "/".join(part for part in Path(name).parts[-2:] if part not in ("/", "."))


def texts_of(options: argparse.Namespace) -> tuple[Texts, Texts]:
    """Of each domain, what is calibrated on and what is measured."""
    sources = sources_of(options)
    if not sources:
        writer = pretrained.load("base", device=options.device)
        return texts_at_hand(*writer, "calibrate"), texts_at_hand(*writer, "measure")
    to_calibrate, to_measure = {}, {}
    for source in sources:
        train_side, held_out = split(source.documents(), options.held_out)
        train_side = shorten(train_side) if source.kind == "text" else train_side
        to_calibrate[source.name], to_measure[source.name] = some(train_side), some(held_out)
    return to_calibrate, to_measure


def some(documents: Sequence[str]) -> list[str]:
    """Documents from all over, as many as have about `MOST_CHARS` characters."""
    total = sum(map(len, documents))
    return list(islice(documents, 0, None, max(1, total // MOST_CHARS)))


def rows_of(texts: Texts, tokenizer: Tokenizer, options: argparse.Namespace) -> Tensor:
    """Calibration, of all domains in equal parts."""
    count = -(-options.calibration // len(texts))
    each = (windows(group, tokenizer, count=count, length=options.length) for group in texts.values())
    return torch.cat(list(each))


def described(model: Decoder, quantized: Decoder) -> dict[str, object]:
    """Sizes, and bits of a weight with its share of scales and zero points."""
    layers = quantized_layers(quantized).values()
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    sizes = {getattr(layer, "group_size", None) for layer in layers}
    return {
        "parameters": model.num_parameters,
        "hidden_size": model.config.hidden_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "group_size": sizes.pop() if len(sizes) == 1 else None,
        "bits_a_weight": rounded(sum(map(bits_of, layers)) / weights),
    }


def bits_of(layer: QuantizedLinear) -> float:
    """All that a layer holds; its codes by their own bits, though kernels want 3 and 2 in the room of 4."""
    held = 8 * layer.nbytes
    if isinstance(layer, PackedLinear):
        held += layer.bits * layer.in_features * layer.out_features - 8 * layer.words.nbytes
    return held


def row(quality: Quality) -> dict[str, object]:
    """Means and their standard errors."""
    numbers = {
        "perplexity": quality.perplexity,
        "reference_perplexity": quality.reference_perplexity,
        "nats": quality.nats.mean,
        "nats_error": quality.nats.error,
        "rise": quality.rise.mean,
        "rise_error": quality.rise.error,
        "kl": quality.kl.mean,
        "kl_error": quality.kl.error,
        "agreement": quality.agreement.mean,
        "agreement_error": quality.agreement.error,
    }
    found = {name: rounded(number) for name, number in numbers.items()}
    return {"domain": quality.domain, "tokens": quality.num_tokens} | found


if __name__ == "__main__":
    main()
