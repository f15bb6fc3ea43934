"""What `config.json` says of quantized weights: the entry `quantization_config` of compressed-tensors.

vLLM and transformers read it too. It gives each group of layers a scheme: bits, granularity and symmetry of
weights, and of inputs where they are quantized. The facts are those of the package compressed-tensors 0.20.
Two entries are ours alone, which other programs leave aside: the name of the scheme, in which the method is
remembered, and the threshold of LLM.int8(). That scheme has no name there; it goes under a `quant_method` of
our own, for others would compute another function from the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from llmcourse.decoding.errors import require
from llmcourse.quantization.quantized_tensor import BITS
from llmcourse.quantization.schemes import Scheme, scheme_of

METHOD, OUR_METHOD = "compressed-tensors", "llmcourse"
LAYOUTS = {
    "packed": "pack-quantized",
    "int8": "int-quantized",
    "mixed": "int-quantized",
    "fp8": "float-quantized",
}

ENTRIES = {  # where the fields of a scheme stand
    "format": "format",
    "bits": "num_bits",
    "symmetric": "symmetric",
    "group_size": "group_size",
    "activations": "strategy of input_activations",
}


def to_config(scheme: Scheme, ignored: Sequence[str]) -> dict[str, Any]:
    """The entry `quantization_config`.

    Args:
        ignored: names of linear layers that keep 16 bits.
    """
    own = scheme.format == "mixed"
    number = "float" if scheme.format == "fp8" else "int"
    grouped = scheme.group_size is not None
    weights = _arguments(scheme.bits, number, "group" if grouped else "channel", symmetric=scheme.symmetric)
    weights["group_size"] = scheme.group_size
    inputs = None
    if scheme.activations:
        inputs = _arguments(8, number, scheme.activations, dynamic=scheme.activations == "token")
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    layout = LAYOUTS[scheme.format]
    ours = {"scheme": scheme.name} | ({"threshold": scheme.threshold} if own else {})
    return {
        "quant_method": OUR_METHOD if own else METHOD,
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | {"output_activations": None, "format": layout}},
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        OUR_METHOD: ours,
    }


def _arguments(
    bits: int, number: str, strategy: str, *, symmetric: bool = True, dynamic: bool = False
) -> dict[str, Any]:
    shared = {"num_bits": bits, "type": number, "symmetric": symmetric, "strategy": strategy}
    return shared | {"dynamic": dynamic, "group_size": None}


def from_config(entry: dict[str, Any]) -> Scheme:
    """What an entry `quantization_config` says, ours or that of another program.

    Raises:
        ValueError: another method or format, several groups, or settings that no layer here has.
    """
    method = entry.get("quant_method")
    remedy = "give a checkpoint in bf16, and quantize it here"
    allowed = f"{METHOD!r} or {OUR_METHOD!r}"
    require(method in (METHOD, OUR_METHOD), "quant_method", allowed, repr(method), remedy)
    groups = entry.get("config_groups")
    holds = isinstance(groups, dict) and len(groups) == 1 and isinstance(next(iter(groups.values())), dict)
    require(holds, "config_groups", "one group for all layers", f"{groups!r:.80}", remedy)
    group = next(iter(groups.values()))
    layout = entry.get("format")
    formats = {
        layout: name for name, layout in LAYOUTS.items() if (name == "mixed") == (method == OUR_METHOD)
    }
    require(
        isinstance(layout, str) and layout in formats,
        "format",
        f"one of {', '.join(formats)}",
        repr(layout),
        remedy,
    )
    ours = entry.get(OUR_METHOD)
    ours = ours if isinstance(ours, dict) else {}
    form = _form_of(group, formats[layout], remedy)
    if form["format"] == "mixed":
        threshold = ours.get("threshold")
        numeric = isinstance(threshold, float | int) and not isinstance(threshold, bool) and threshold > 0
        require(numeric, "threshold", "a number above 0", repr(threshold), remedy)
        form["threshold"] = float(threshold)
    name = ours.get("scheme")
    if not isinstance(name, str):
        return named(form, None)
    field = _differing(scheme_of(name), form)
    if field:
        allowed = (
            f"{getattr(scheme_of(name), field)!r} for the scheme {name!r} that the entry {OUR_METHOD!r} names"
        )
        remedy = "fetch config.json again, or take the name out for a scheme of that form"
        require(False, ENTRIES[field], allowed, repr(form[field]), remedy)
    return named(form, name)


def check_targets(entry: dict[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError unless what an entry aims at are the linear layers of these names.

    A target is the name of a class, the name of a layer, or a pattern for its beginning behind "re:".

    Args:
        entry: one that `from_config` takes.
        names: of the layers that are stored in few bits.
    """
    (group,) = entry["config_groups"].values()
    targets, remedy = group.get("targets"), "fetch config.json again"
    texts = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    require(texts, "targets", "a list of texts", f"{targets!r:.80}", remedy)
    if "Linear" in targets:
        return
    for name in names:
        try:
            aimed = any(_aims(target, name) for target in targets)
        except re.error as error:
            raise ValueError(f"targets must be patterns, got {targets!r:.80} ({error}); {remedy}") from error
        allowed = f"'Linear' or others that match {name}, which is stored in few bits"
        require(aimed, "targets", allowed, f"{targets!r:.80}", remedy)


def _aims(target: str, name: str) -> bool:
    pattern = target.removeprefix("re:")
    return target == name if pattern == target else re.match(pattern, name) is not None


def _form_of(group: dict[str, Any], format: str, remedy: str) -> dict[str, Any]:
    """The fields of a scheme but for its name and method."""
    weights, inputs = group.get("weights"), group.get("input_activations")
    require(isinstance(weights, dict), "weights", "a JSON object", repr(weights), remedy)
    packed, number = format == "packed", "float" if format == "fp8" else "int"
    bits, strategy, size = (weights.get(name) for name in ("num_bits", "strategy", "group_size"))
    allowed = BITS if packed else (8,)
    holds = type(bits) is int and bits in allowed
    require(holds, "num_bits", f"one of {', '.join(map(str, allowed))}", repr(bits), remedy)
    kind = weights.get("type", "int")
    require(kind == number, "type of weights", repr(number), repr(kind), remedy)
    strategies = ("group", "channel") if packed else ("channel",)
    require(strategy in strategies, "strategy of weights", f"of {strategies}", repr(strategy), remedy)
    symmetric = weights.get("symmetric", True)
    holds = isinstance(symmetric, bool) and (packed or symmetric)
    require(holds, "symmetric", "true or false" if packed else "true", repr(symmetric), remedy)
    order = weights.get("actorder")
    require(order in (None, "weight", "static"), "actorder", "null or 'static'", repr(order), remedy)
    if strategy == "group":
        holds = type(size) is int and size >= 1
        require(holds, "group_size", "at least 1", repr(size), remedy)
    activations = _activations(inputs, number, packed, remedy)
    size = size if strategy == "group" else None
    shared = {"format": format, "bits": bits, "symmetric": symmetric, "group_size": size}
    return shared | {"activations": activations, "threshold": None}


def _activations(inputs: Any, number: str, packed: bool, remedy: str) -> str | None:
    if packed:
        require(inputs is None, "input_activations", "null with packed weights", f"{inputs!r:.80}", remedy)
        return None
    require(isinstance(inputs, dict), "input_activations", "a JSON object", f"{inputs!r:.80}", remedy)
    strategy = "token" if inputs.get("dynamic") else "tensor"
    expected = {"num_bits": 8, "type": number, "symmetric": True, "strategy": strategy}
    found = {name: inputs.get(name, {"symmetric": True, "type": "int"}.get(name)) for name in expected}
    require(found == expected, "input_activations", f"{expected}", f"{found}", remedy)
    return strategy


def named(form: dict[str, Any], name: str | None) -> Scheme:
    """A scheme of this form, and of the method that the name stands for."""
    if name is None:
        return Scheme(_name_of(form), **form)
    known = scheme_of(name)
    same = _differing(known, form) is None
    require(same, "scheme", "one of the form of the layers", repr(name), "leave it out")
    return replace(known, shrinks=False, **form)


def _differing(known: Scheme, form: dict[str, Any]) -> str | None:
    """The first field in which a scheme is of another form."""
    free = ("group_size", "threshold")  # of one's own
    for field in form:
        if field not in free and getattr(known, field) != form[field]:
            return field
    return None if known.shrinks or form["group_size"] in (None, known.group_size) else "group_size"


def _name_of(form: dict[str, Any]) -> str:
    static = form["activations"] == "tensor"
    other = {"mixed": "llm.int8", "fp8": "fp8", "int8": "w8a8-static" if static else "w8a8"}
    group = f"-g{form['group_size']}" if form["group_size"] else ""
    return other.get(form["format"], f"int{form['bits']}{group}")
