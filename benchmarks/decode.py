"""How fast the decode engine writes with models of large shapes, beside limit, peer and prediction.

One sequence with each model, then Llama-3-8B with more and more of them; bfloat16, a prompt of 128 tokens
and 200 new ones, random weights. In the same process: the limit, a copy of the weights and of the cache;
the peer, transformers' `generate` with a static cache and a compiled step; and what `roofline` predicts
from this GPU's measured ceilings. Neither side finds anything compiled on the disk: the times to the first
token are those of a new machine, but for what models before have compiled in this process.

    python benchmarks/decode.py [--models llama3_8b,llama2_7b,qwen3_0.6b] [--batches 2,4,8,16,32,64]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from large_models import CONFIGS, NEW, PROMPT, random_model, random_prompts, step_bytes
from record import record
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from llmcourse import costs, hardware, roofline, timing
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.model import Decoder

REPEATS = 5
CONTEXT = PROMPT + NEW // 2  # tokens in the cache, on average


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(CONFIGS))
    parser.add_argument("--batches", default="2,4,8,16,32,64", help="with the first model; may be empty")
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    for compiler in ("TRITON", "TORCHINDUCTOR"):
        os.environ[f"{compiler}_CACHE_DIR"] = tempfile.mkdtemp()
    ceilings = hardware.measure_ceilings(torch.device("cuda"), refresh=True)
    print(ceilings, flush=True)
    names = arguments.models.split(",")
    batches = [int(size) for size in arguments.batches.split(",") if size]
    for name in names:
        model = random_model(name)
        peer = None if arguments.no_peer else transformers_step(name)
        for batch in [1, *(batches if name == names[0] else [])]:
            report(name, model, batch, ceilings, peer if batch == 1 else None)
        del model
        torch.cuda.empty_cache()


def report(
    name: str, model: Decoder, batch: int, ceilings: hardware.Ceilings, peer: dict[str, float] | None
) -> None:
    copy = hardware.copy_bandwidth("cuda")
    steps, first = engine_steps(model, batch)
    measured = statistics.median(steps)
    step = costs.Step.decode(batch, CONTEXT)
    predicted = roofline.predict_step(CONFIGS[name], step, ceilings).time_s
    record(
        f"decode_{name}_bf16_b{batch}",
        batch / measured,
        "tok/s",
        limit=batch * copy * 1e9 / step_bytes(name, batch, CONTEXT),
        limit_name="copy bandwidth over the bytes of weights and cache",
        peer=peer and "transformers generate, static cache, compiled",
        peer_value=peer and batch / peer["step_s"],
        spread=timing.Timing(tuple(steps)).spread,
        device=torch.device("cuda"),
        copy_gbps=round(copy),
        prompt_tokens=PROMPT,
        new_tokens=NEW,
        step_ms=round(measured * 1e3, 4),
        predicted_step_ms=round(predicted * 1e3, 4),
        predicted_over_measured=round(predicted / measured, 3),
        first_token_s=round(first, 2),
        peer_first_token_s=peer and round(peer["first_s"], 1),
    )


def engine_steps(model: Decoder, batch: int) -> tuple[list[float], float]:
    """Seconds of a step, in several runs; and from the engine's making to its first token."""
    prompts = random_prompts(model, batch)
    begun = time.perf_counter()
    engine = DecodeEngine(model)

    def decode(tokens: int) -> None:
        engine.start(prompts, PROMPT + NEW + 8)
        engine.decode(tokens)

    first = seconds(lambda: decode(1), since=begun)
    return steps(decode), first


def transformers_step(name: str) -> dict[str, float]:
    """The peer's seconds of a step, and to its first token: most of it compilation."""
    torch.set_default_device("cuda")
    try:
        model = AutoModelForCausalLM.from_config(peer_config(name), dtype=torch.bfloat16).eval()
    finally:
        torch.set_default_device(None)
    ids = torch.randint(0, 30000, (1, PROMPT), device="cuda")

    def generate(tokens: int) -> None:
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            cache_implementation="static",
            max_new_tokens=tokens,
            do_sample=False,
        )
        if found.shape[1] != PROMPT + tokens:
            raise RuntimeError(f"the peer wrote {found.shape[1] - PROMPT} of {tokens} tokens")

    first = seconds(lambda: generate(2))
    generate(1 + NEW)
    found = statistics.median(steps(generate))
    return {"step_s": found, "first_s": first}


def peer_config(name: str) -> PretrainedConfig:
    c = CONFIGS[name]
    kind = Qwen3Config if c.qk_norm else LlamaConfig
    return kind(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=c.max_position_embeddings,
        rms_norm_eps=c.rms_norm_eps,
        tie_word_embeddings=c.tie_word_embeddings,
        eos_token_id=None,  # so that it writes on, with nothing to look out for
        pad_token_id=None,
    )


def steps(decode: Callable[[int], None]) -> list[float]:
    """Seconds of a token: of all of them but the first, which the prompt comes before."""
    decode(1 + NEW)
    found = []
    for _ in range(REPEATS):
        one, all_of_them = seconds(lambda: decode(1)), seconds(lambda: decode(1 + NEW))
        found.append((all_of_them - one) / NEW)
    return found


def seconds(work: Callable[[], None], since: float | None = None) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter() if since is None else since
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
