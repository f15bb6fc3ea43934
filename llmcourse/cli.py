"""The command line: `python -m llmcourse doctor`, `generate "…"`, `quantize`, `serve`, `grade` and others.

A bad value ends with one line `error: …` and exit code 2, a failure while running with 1, Ctrl-C
with 130 (a server, which has no other end, with 0). PyTorch is imported by the commands that need it,
so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence

from llmcourse.arguments import Parser
from llmcourse.grading.commands import add_commands

INTERRUPTED = 130
PIPE_CLOSED = 141  # what a shell reports for a program that SIGPIPE ended

# The fields of `SamplingParams` that can be set here; its defaults and checks are used.
SAMPLING = {
    "temperature": (float, "0 is greedy search, 1 (default) the model's own distribution"),
    "top_k": (int, "keep the k likeliest tokens"),
    "top_p": (float, "keep the likeliest tokens that hold this share of the probability"),
    "min_p": (float, "keep tokens at least this likely, relative to the likeliest"),
    "typical_p": (float, "keep the most typical tokens that hold this share of the probability"),
    "eta_cutoff": (float, "cut tokens below a limit that depends on the entropy"),
    "no_repeat_ngram_size": (int, "never repeat this many tokens in a row"),
    "presence_penalty": (float, "penalty, in logits, for tokens that have occurred"),
    "frequency_penalty": (float, "penalty, in logits, for each time that a token has occurred"),
    "repetition_penalty": (float, "factor by which tokens that have occurred are made less likely"),
}


def build_parser() -> Parser:
    parser = Parser(prog="llmcourse", description="Deploying large language models: the course's commands.")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="{doctor,generate,quantize,serve,grade,gradebook,labs}"
    )
    doctor = commands.add_parser("doctor", help="what this machine has, and what is missing")
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    doctor.add_argument(
        "--grading", action="store_true", help="prove instead that students' code is isolated"
    )
    doctor.add_argument(
        "--measure", action="store_true", help="first measure how fast this machine copies and multiplies"
    )
    doctor.set_defaults(run=run_doctor)
    _add_generate(commands.add_parser("generate", help="continue a text with a model"))
    _add_quantize(commands.add_parser("quantize", help="write a model in fewer bits to a folder"))
    _add_serve(commands.add_parser("serve", help="answer programs over HTTP, as OpenAI's server does"))
    add_commands(commands)
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_generate)
    parser.add_argument("prompt", help="the text to continue, `-` to read it from standard input")
    parser.add_argument("--model", default="base", help="an embedded model, a folder or a hub name")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="at most (default 128)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before it; repeatable"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--quantize", metavar="SCHEME", help="first quantize: int8, int4-gptq, w8a8, …")
    parser.add_argument("--verbose", action="store_true", help="then print the speed and its limit to stderr")
    sampling = parser.add_argument_group("choosing tokens")
    for name, (kind, text) in SAMPLING.items():
        sampling.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=text)
    sampling.add_argument("--num-beams", type=int, metavar="N", help="beam search instead of sampling")
    sampling.add_argument("--contrastive", metavar="MODEL", help="subtract this weaker model (the amateur)")


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_quantize)
    parser.add_argument("model", help="an embedded model, a folder or a hub name")
    parser.add_argument("scheme", help="int8, int4, int4-gptq, int4-awq-g64, w8a8, llm.int8, fp8, …")
    parser.add_argument("out", help="folder to write, which loads as any model does")
    text = "file to calibrate on, in place of text at hand; repeatable"
    parser.add_argument("--text", action="append", default=[], metavar="FILE", help=text)
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_serve)
    parser.add_argument("--model", default="base", help="an embedded model, a folder or a hub name")
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000; 0 for a free one")
    parser.add_argument("--policy", default="chunked", choices=("chunked", "continuous", "traditional"))
    parser.add_argument("--max-running", type=int, default=64, metavar="N", help="at once (default 64)")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--blocks", type=int, metavar="N", help="blocks of 16 tokens for keys and values")
    memory.add_argument("--memory", type=float, metavar="GB", help="the same as memory, in 10^9 bytes")
    parser.add_argument("--queue-limit", type=int, default=1024, metavar="N", help="waiting (default 1024)")
    parser.add_argument("--grace", type=float, default=5.0, metavar="S", help="seconds to finish, at the end")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))


def run_doctor(options: argparse.Namespace) -> int:
    from llmcourse.doctor import examine, examine_grading, render, to_json

    if options.measure:
        from llmcourse.hardware import measure_ceilings

        measure_ceilings(refresh=True)
    report = examine_grading() if options.grading else examine()
    print(to_json(report) if options.json else render(report))
    return 0 if report.ok else 1


def run_generate(options: argparse.Namespace) -> int:
    """Streams a continuation to standard output; values are checked before weights are read."""
    from llmcourse.decoding.params import SamplingParams
    from llmcourse.quantization.schemes import scheme_of

    given = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    params = SamplingParams(**given)
    if options.num_beams is not None and options.stop:
        raise ValueError("--stop cannot be used with --num-beams; leave one of them out")
    prompt, generator = read_prompt(options.prompt), seeded(options.seed)
    if options.quantize is not None:
        scheme_of(options.quantize)
    source, models, tokenizer = load_source(options)
    token_ids = tokenizer.encode_prompt(prompt)
    settings = {"max_new_tokens": options.max_new_tokens}
    if options.num_beams is None:
        settings |= {"params": params, "generator": generator, "stop": options.stop}
        times_s = _stream(prompt, source, token_ids, tokenizer, settings)
    else:
        settings |= {"processors": params.processors()}
        times_s = _search(prompt, source, token_ids, tokenizer, options.num_beams, settings)
    if options.verbose:
        print(speed_report(times_s, models), file=sys.stderr)
    return 0


def run_quantize(options: argparse.Namespace) -> int:
    """Quantizes a model and writes it; what cannot be is refused before weights are read."""
    from pathlib import Path

    from llmcourse.quantization.models import quantize
    from llmcourse.quantization.schemes import scheme_of
    from llmcourse.quantization.stored import check_replaceable, save
    from llmcourse.quantization.texts import calibration_rows

    scheme, folder = scheme_of(options.scheme), Path(options.out)
    if options.text and not scheme.needs_calibration:
        raise ValueError(
            f"--text must be left out for {scheme.name}, which looks at no text; or try int4-gptq"
        )
    check_replaceable(folder)
    texts = [_read_text(Path(path)) for path in options.text]
    model, tokenizer = load_model(options.model, options)
    rows = calibration_rows(model, tokenizer, texts) if scheme.needs_calibration else None
    save(quantize(model, scheme, rows), folder, options.model, scheme.name)
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {options.model} in {scheme.name}, {size / 1e6:.1f} MB of weights")
    return 0


def _read_text(path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"{path}, which is not at byte {error.start}"
        raise ValueError(f"--text must be a file in UTF-8, got {found}; convert it") from error


def run_serve(options: argparse.Namespace) -> int:
    """Serves until Ctrl-C; values and the port are checked before weights are read."""
    from llmcourse.serving.http.build import ServiceSettings, build
    from llmcourse.serving.http.server import bind, serve
    from llmcourse.speculative import LookupDrafter, Speculation

    drafters = {"lookup": lambda vocab_size, length: Speculation(LookupDrafter(vocab_size), length)}
    settings = ServiceSettings(
        options.model,
        policy=options.policy,
        max_running=options.max_running,
        num_blocks=options.blocks,
        memory_gb=options.memory,
        queue_limit=options.queue_limit,
        grace_s=options.grace,
        device=options.device,
        dtype=options.dtype,
    )
    with bind(options.host, options.port) as listening:
        service, model = build(settings, drafters, load_any)
        serve(listening, service, model, grace_s=settings.grace_s)
    return 0


def read_prompt(argument: str) -> str:
    """The prompt itself, or standard input for `-`, without the newline that ends its last line."""
    text = sys.stdin.buffer.read().decode() if argument == "-" else argument
    if not text:
        raise ValueError("prompt must hold some text, got none; start with '<|endoftext|>'")
    text.encode()  # an argument that is no UTF-8 is refused here
    return text.removesuffix("\n") or text if argument == "-" else text


def seeded(seed: int | None):
    """A generator for this seed, or for one that nobody chose."""
    import torch

    generator = torch.Generator()
    if seed is None:
        generator.seed()
    elif 0 <= seed < 2**63:
        generator.manual_seed(seed)
    else:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}; leave it out for a random one")
    return generator


def load_source(options: argparse.Namespace):
    """What gives logits, the models behind it, and their tokenizer."""
    from llmcourse.decoding.contrastive import ContrastiveLogits
    from llmcourse.decoding.source import as_source

    model, tokenizer = load_model(options.model, options)
    if options.quantize is not None:
        model = quantized(model, tokenizer, options.quantize)
    if options.contrastive is None:
        return as_source(model), [model], tokenizer
    amateur, amateur_tokenizer = load_model(options.contrastive, options)
    both = ContrastiveLogits(model, amateur, tokenizers=(tokenizer, amateur_tokenizer))
    return both, [model, amateur], tokenizer


def load_model(name: str, options: argparse.Namespace):
    """A model and its tokenizer on the device and in the dtype of the options, be it quantized or not."""
    import torch

    from llmcourse.hardware import default_device, this_machine

    device = options.device or default_device()
    this_machine(device)  # refuses a device that is not here
    return load_any(name, device=device, dtype=getattr(torch, options.dtype))


def load_any(name: str, **settings):
    """`pretrained.load`, or `quantization.load` where the checkpoint says that it is quantized."""
    from llmcourse import pretrained
    from llmcourse.quantization import stored

    load = stored.load if stored.is_quantized(name) else pretrained.load
    return load(name, **settings)


def quantized(model, tokenizer, scheme_name: str):
    """The model in fewer bits, calibrated on text at hand where the scheme asks for it."""
    from llmcourse.quantization.layers import choose_backend
    from llmcourse.quantization.models import quantize
    from llmcourse.quantization.schemes import scheme_of
    from llmcourse.quantization.texts import calibration_rows

    scheme = scheme_of(scheme_name)
    rows = calibration_rows(model, tokenizer) if scheme.needs_calibration else None
    model = quantize(model, scheme, rows)
    choose_backend(model, "auto", scheme.name)
    return model


def _stream(prompt: str, source, token_ids: list[int], tokenizer, settings: dict) -> list[float]:
    """Writes the prompt, then every piece of text as soon as it is certain; returns times a step."""
    from llmcourse.decoding.loop import stream

    steps = stream(source, [token_ids], tokenizer=tokenizer, **settings)
    write(prompt)
    times_s = []
    for step in steps:
        write(step.texts[0])
        times_s.append(step.time_s)
    write("\n")
    return times_s


def _search(
    prompt: str, source, token_ids: list[int], tokenizer, num_beams: int, settings: dict
) -> list[float]:
    """Writes the best hypothesis, which is known only at the end; returns the mean time a step."""
    from llmcourse.decoding.beam import beam_search

    started = time.perf_counter()
    search = beam_search(source, token_ids, num_beams=num_beams, progress=True, **settings)
    num_steps = search.nodes[-1].step + 1
    time_s = (time.perf_counter() - started) / num_steps
    write(f"{prompt}{tokenizer.decode(search.hypotheses[0].tokens)}\n")
    return [time_s] * num_steps


def write(text: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def speed_report(times_s: list[float], models: list) -> str:
    """Steps a second after the prompt, beside what copying the weights as often would allow.

    limit = copy bandwidth / bytes of weights that one token reads
    """
    from llmcourse.hardware import copy_bandwidth, this_machine
    from llmcourse.timing import Timing

    summary = f"{len(times_s)} steps in {sum(times_s):.2f} s on {this_machine(models[0].device)}"
    if len(times_s) < 2:  # the first step is the prompt's
        return summary
    weights_bytes = sum(read_bytes(model) for model in models)
    bandwidth = copy_bandwidth(models[0].device, weights_bytes)
    limit = bandwidth * 1e9 / weights_bytes
    speed = 1 / Timing(tuple(times_s[1:])).median_s
    return (
        f"{summary}\n{speed:.0f} tok/s, {speed / limit:.0%} of the limit of {limit:.0f} tok/s: "
        f"{weights_bytes / 1e6:.1f} MB of weights a token at {bandwidth:.1f} GB/s, a copy of that size"
    )


def read_bytes(model) -> int:
    """Weights that one decode step reads: all but the input embedding, of which it takes one row."""
    table = model.model.embed_tokens.weight
    lookup = 0 if getattr(model.lm_head, "weight", None) is table else table.nbytes
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) - lookup


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):  # Chinese text, whatever the locale says
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    options = build_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has gone; keep Python from flushing into the void at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except RuntimeError as error:  # a sequence that cannot go on, memory that runs out
        return _fail(error, 1)


def _warn(message: Warning | str, *_) -> None:
    """In one line, without the place in our code that it comes from."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
