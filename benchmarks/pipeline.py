"""The whole course on one model: tokens a second and quality after each step, each beside its roofline.

Two parts. `base`: a real model and its draft on the machine at hand, by `llmcourse.pipeline`; a line a stage
goes to results/raw/pipeline_<device>.jsonl. `llama`, on a GPU: Llama-3-8B's shape with random weights and one
text, in bfloat16 (where it starts), then in codes of 4 bits, then with speculation. Random models agree on
nothing, so that the last step is made of two things that are measured, and told apart: how long a step of
drafting and verifying takes at this shape, with a drafter that has as small a share of the weights as that of
the pair; and how many tokens a step brought to a trained pair (`--pair`) on other prompts than those by which
the draft length was chosen. The engine's kernels read a cache of 16 bits; what one of 8 would spare of the
bytes of a step is in the raw line.

    python benchmarks/pipeline.py [--parts base,llama] [--target base --drafter draft] [--pair TARGET,DRAFTER]

The headline is `pipeline_llama3_8b`: the speed-up over our own decoding in bfloat16, the mean over domains.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import speculative
import torch
from decode import CONTEXT, engine_steps
from decode_low_bit import in_codes
from large_models import NEW, PROMPT, random_decoder, random_model, random_prompts, step_bytes
from record import record, record_raw, rounded

from llmcourse import hardware, pretrained, prompts
from llmcourse.arguments import Parser
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.model import Decoder
from llmcourse.pipeline import STAGES, Pipeline, Stage
from llmcourse.quantization.cache import QuantizedKVCache
from llmcourse.quantization.schemes import scheme_of
from llmcourse.quantization.texts import calibration_rows, texts_at_hand, token_stream
from llmcourse.speculative.engine import SpeculativeEngine
from llmcourse.timing import Timing, synchronize

STEM, PARTS, NAME = "pipeline", ("base", "llama"), "llama3_8b"
REPEATS = 5
TOKENS = 256  # that the pair writes to each prompt


def parser() -> Parser:
    result = Parser(prog="pipeline.py", description=__doc__.split("\n")[0])
    result.add_argument("--parts", default=",".join(PARTS))
    result.add_argument("--target", default="base", help="of the part base: name or folder")
    result.add_argument("--drafter", default="draft", help="of the part base: name or folder")
    result.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    result.add_argument("--scheme", default="int4", help="of the weights, in the part base")
    result.add_argument("--new-tokens", type=int, default=128)
    result.add_argument("--texts", type=int, default=32, help="that are served")
    result.add_argument("--prompts", type=int, default=9, help="that are written one by one")
    result.add_argument("--draft-length", type=int, default=4)
    result.add_argument("--length", type=int, default=128, help="tokens of a window, for quality")
    result.add_argument("--pair", default="base,draft", help="of the part llama: TARGET,DRAFTER")
    result.add_argument("--gammas", default="2,3,4,5,6,7")
    result.add_argument("--device", default=str(hardware.default_device()))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    parts, device = options.parts.split(","), torch.device(options.device)
    if "base" in parts:
        report_base(options, device)
    if "llama" in parts:
        if device.type == "cuda":
            report_llama(options, device)
        else:
            print("the part llama needs a GPU, and is left out", flush=True)


def report_base(options, device: torch.device) -> None:
    """Every stage as soon as it is there; then the fastest one that writes one text."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    load = lambda name: pretrained.load(name, device=device, dtype=dtype)  # noqa: E731
    (target, tokenizer), drafter = load(options.target), load(options.drafter).model
    texts = texts_at_hand(target, tokenizer, "measure", num_tokens=options.length)
    calibration = None
    if scheme_of(options.scheme).needs_calibration:
        calibration = calibration_rows(target, tokenizer, length=options.length)
    course = Pipeline(
        target,
        drafter,
        [tokenizer.encode_prompt(text) for text in openings(options.prompts)],
        {domain: token_stream(tokenizer, each) for domain, each in texts.items()},
        hardware.measure_ceilings(device),
        new_tokens=options.new_tokens,
        texts=options.texts,
        draft_length=options.draft_length,
        scheme=options.scheme,
        calibration=calibration,
        length=options.length,
    )
    names = [label(name) for name in (options.target, options.drafter)]
    shared = {"target": names[0], "drafter": names[1], "scheme": options.scheme, "dtype": str(dtype)[6:]}
    shared["threads"] = torch.get_num_threads()
    found = {}
    for stage in course.run(options.stages):
        print(stage, flush=True)
        record_raw(STEM, device, **shared, **stage_row(stage))
        found[stage.name] = stage
    report_fastest(found, shared, device)


def openings(count: int) -> list[str]:
    """Of all three domains in turns."""
    kinds = list(prompts.PROSE), list(prompts.VERSE), prompts.standard_library()
    return [text for texts in zip(*kinds, strict=False) for text in texts][:count]


def label(name: str) -> str:
    """An embedded model's name; of a folder the last two."""
    return "/".join(part for part in Path(name).parts[-2:] if part not in ("/", "."))


def stage_row(stage: Stage) -> dict[str, object]:
    return {
        name: rounded(value) if isinstance(value, float) else value for name, value in stage.row().items()
    }


def report_fastest(found: dict[str, Stage], shared: dict[str, object], device: torch.device) -> None:
    alone = [stage for stage in found.values() if stage.texts == 1]
    if not alone:
        return
    best, start = max(alone, key=lambda stage: stage.tokens_per_s), alone[0]
    record(
        f"pipeline_{shared['target']}_{device.type}",
        best.tokens_per_s,
        "tok/s",
        limit=best.limit,
        limit_name="the roofline of this stage",
        peer=start.name,
        peer_value=start.tokens_per_s,
        spread=best.spread,
        device=device,
        stage=best.name,
        kl=rounded(best.kl),
        **shared,
    )


def report_llama(options, device: torch.device) -> None:
    """All of one process: 16 bits, 4 bits, and steps of speculation over both."""
    gammas, pair = [int(gamma) for gamma in options.gammas.split(",")], options.pair.split(",")
    copy = hardware.copy_bandwidth(device)
    model = random_model(NAME)
    wide = Timing(tuple(engine_steps(model, 1)[0]))
    note("bf16", wide, step_bytes(NAME, 1, CONTEXT), copy, device)
    in_codes(model, 4)
    codes = Timing(tuple(engine_steps(model, 1)[0]))
    cache = model.new_cache(1, 1).bytes_per_token
    read = code_bytes(model) + cache * CONTEXT
    spared = (cache - QuantizedKVCache.of(model, 1, 1, bits=8).bytes_per_token) * CONTEXT / read
    note("int4", codes, read, copy, device, spared_by_int8_cache=rounded(spared))
    drafter = random_decoder(drafter_config(model, pair[1]))
    steps = {gamma: speculative_step(model, drafter, gamma) for gamma in gammas}
    for gamma, timing in steps.items():
        own = gamma * 2 * drafter.num_parameters
        note(f"speculation, {gamma} drafts", timing, read + own, copy, device, gamma=gamma)
    chosen, gained = tokens_a_step(pair, {gamma: timing.median_s for gamma, timing in steps.items()}, device)
    seconds = {domain: steps[gamma].median_s / gained[domain] for domain, gamma in chosen.items()}
    record(
        f"pipeline_{NAME}",
        wide.median_s / statistics.mean(seconds.values()),
        "speed-up",
        peer="our own decoding in bfloat16",
        peer_value=1.0,
        spread=max(timing.spread for timing in (wide, *steps.values())),
        device=device,
        int4_alone=rounded(wide.median_s / codes.median_s),
        by_domain={domain: rounded(wide.median_s / each) for domain, each in seconds.items()},
        tokens_a_step={domain: rounded(each) for domain, each in gained.items()},
        gamma=chosen,
        bf16_ms=rounded(wide.median_s * 1e3),
        int4_ms=rounded(codes.median_s * 1e3),
        step_ms={str(gamma): rounded(timing.median_s * 1e3) for gamma, timing in steps.items()},
        drafter_parameters=drafter.num_parameters,
        pair=[label(name) for name in pair],
        copy_gbps=round(copy),
        prompt_tokens=PROMPT,
        new_tokens=NEW,
    )


def tokens_a_step(
    pair: Sequence[str], step_s: Mapping[int, float], device: torch.device
) -> tuple[dict[str, int], dict[str, float]]:
    """By domain: the draft length that is fastest on a quarter of the prompts, and tokens on the others.

    Args:
        step_s: of the large shape, by the draft lengths to choose from.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    (target, drafter), encode = speculative.load(pair, device, dtype)
    engines = {gamma: SpeculativeEngine(target, drafter, draft_length=gamma) for gamma in step_s}
    chosen, gained = {}, {}
    for domain, given in speculative.DOMAINS.items():
        texts = [encode(text) for text in given()]
        tried = {gamma: mean_gain(engine, texts[::4]) for gamma, engine in engines.items()}
        chosen[domain] = max(tried, key=lambda gamma: tried[gamma] / step_s[gamma])
        others = [text for number, text in enumerate(texts) if number % 4]
        gained[domain] = mean_gain(engines[chosen[domain]], others)
        row = {"domain": domain, "gamma": chosen[domain], "tokens_a_step": rounded(gained[domain])}
        record_raw(STEM, device, stage="pair", pair=[label(name) for name in pair], **row)
        print(domain, row, flush=True)
    return chosen, gained


def mean_gain(engine: SpeculativeEngine, texts: Sequence[list[int]]) -> float:
    """Tokens of all texts over steps, greedily."""
    found = [engine.generate([text], TOKENS) for text in texts]
    return sum(len(each.tokens[0]) - 1 for each in found) / sum(each.num_steps for each in found)


def drafter_config(model: Decoder, name: str):
    """The pair's drafter with the large model's vocabulary and context."""
    config, large = pretrained.read_config(pretrained.find_checkpoint(name)), model.config
    context = large.max_position_embeddings
    return replace(config, vocab_size=large.vocab_size, max_position_embeddings=context, eos_token_ids=())


def speculative_step(model: Decoder, drafter: Decoder, gamma: int) -> Timing:
    """Seconds of a step in the midst of a text, its share of reading the prompt taken off."""
    engine, given = SpeculativeEngine(model, drafter, draft_length=gamma), random_prompts(model, 1)

    def seconds(count: int) -> tuple[float, int]:
        synchronize(model.device)
        began = time.perf_counter()
        steps = engine.generate(given, count).num_steps
        synchronize(model.device)
        return time.perf_counter() - began, steps

    seconds(NEW)
    found = []
    for _ in range(REPEATS):
        (first_s, _), (all_s, steps) = seconds(1), seconds(NEW)
        found.append(max(all_s - first_s, 0.0) / steps)
    return Timing(tuple(found))


def code_bytes(model: Decoder) -> int:
    return sum(module.nbytes for module in model.modules() if isinstance(module, QuantizedLinear))


def note(
    stage: str, timing: Timing, read_bytes: float, copy_gbps: float, device: torch.device, **more: object
) -> None:
    """A step beside a copy of what it reads."""
    limit_ms = read_bytes / copy_gbps / 1e6
    row = {"step_ms": rounded(timing.median_s * 1e3), "limit_ms": rounded(limit_ms), **more}
    shared = {"shape": NAME, "stage": stage, "ratio_limit": rounded(limit_ms / timing.median_s / 1e3)}
    record_raw(STEM, device, **shared, **row, spread=rounded(timing.spread), read_bytes=int(read_bytes))
    print(stage, row, flush=True)


if __name__ == "__main__":
    main()
