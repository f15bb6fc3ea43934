"""The command line: what it prints, where, and how it ends."""

import io
import json
import os
import select
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from llmcourse import cli
from llmcourse.cli import main
from llmcourse.pretrained import load

COMMAND = [sys.executable, "-m", "llmcourse"]


@pytest.fixture
def generate(tiny_checkpoint, capsys):
    """Runs `generate` on the tiny model in this process; returns exit code, output and errors."""

    def run(prompt: str, *options: str):
        code = main(["generate", prompt, "--model", str(tiny_checkpoint), "--max-new-tokens", "8", *options])
        return code, *capsys.readouterr()

    return run


def test_the_same_seed_gives_the_same_text(generate):
    first, again, other = (generate("Once", "--seed", seed) for seed in "001")
    assert first == again and first[0] == 0
    assert first[1] != other[1]
    assert first[1].startswith("Once") and first[1].endswith("\n") and first[2] == ""


def test_without_a_seed_texts_differ(generate):
    assert len({generate("Once")[1] for _ in range(5)}) > 1


def test_what_is_printed_is_what_the_loop_gives(generate, tiny_checkpoint):
    from llmcourse.decoding.loop import generate as decode

    model, tokenizer = load(tiny_checkpoint)
    expected = decode(model, [tokenizer.encode("def area")], tokenizer=tokenizer, max_new_tokens=8)
    _, output, _ = generate("def area", "--temperature", "0")
    assert output == f"def area{expected[0].text}\n"


SWITCHES = {
    "temperature": "0.5",
    "top_k": "1",
    "top_p": "0.1",
    "min_p": "0.9",
    "typical_p": "0.1",
    "eta_cutoff": "0.5",
    "no_repeat_ngram_size": "1",
    "presence_penalty": "50",
    "frequency_penalty": "50",
    "repetition_penalty": "50",
}


def test_every_sampling_option_reaches_the_parameters(generate, monkeypatch):
    from llmcourse.decoding import params

    seen, original = [], params.SamplingParams
    monkeypatch.setattr(params, "SamplingParams", lambda **given: seen.append(given) or original(**given))
    options = [text for name, value in SWITCHES.items() for text in (f"--{name.replace('_', '-')}", value)]
    assert generate("Once", *options, "--seed", "0")[0] == 0
    assert seen == [{name: float(value) for name, value in SWITCHES.items()}]
    assert set(SWITCHES) == set(cli.SAMPLING)


def test_options_left_out_keep_the_defaults(generate, monkeypatch):
    from llmcourse.decoding import params

    seen, original = [], params.SamplingParams
    monkeypatch.setattr(params, "SamplingParams", lambda **given: seen.append(given) or original(**given))
    assert generate("Once", "--temperature", "0")[0] == 0
    assert seen == [{"temperature": 0.0}]


def test_beam_search_prints_the_best_hypothesis(generate, tiny_checkpoint):
    from llmcourse.decoding.beam import beam_search

    model, tokenizer = load(tiny_checkpoint)
    best = beam_search(model, tokenizer.encode("Once"), num_beams=3, max_new_tokens=8).hypotheses[0]
    assert generate("Once", "--num-beams", "3")[1] == f"Once{tokenizer.decode(best.tokens)}\n"


def test_contrastive_decoding_of_a_model_with_itself_leaves_ties(generate, tiny_checkpoint):
    # Expert minus amateur is 0 for every plausible token: greedy search takes the lowest such id.
    code, output, _ = generate("Once", "--contrastive", str(tiny_checkpoint), "--temperature", "0")
    assert code == 0 and output.startswith("Once")
    assert output != generate("Once", "--temperature", "0")[1]


def test_a_stop_string_ends_the_text_before_it(generate):
    whole = generate("Once", "--temperature", "0")[1].removeprefix("Once").removesuffix("\n")
    stop = whole[2:4]
    ended = generate("Once", "--temperature", "0", "--stop", "not in it", "--stop", stop)[1]
    assert ended == f"Once{whole[: whole.index(stop)]}\n"


def test_the_prompt_comes_from_standard_input(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("床前明月光\n".encode()), encoding="ascii"))
    assert generate("-", "--seed", "3")[1] == generate("床前明月光", "--seed", "3")[1]


def test_verbose_puts_speed_beside_its_limit(generate):
    code, output, errors = generate("Once", "--temperature", "0", "--verbose")
    assert code == 0 and output == generate("Once", "--temperature", "0")[1]
    assert "steps in" in errors and "(cpu, " in errors
    assert "of the limit of" in errors and "a copy of that size" in errors
    assert "MB of weights" in generate("Once", "--num-beams", "2", "--verbose")[2]


def test_the_input_embedding_is_not_read_whole(tiny_checkpoint):
    model, _ = load(tiny_checkpoint)
    assert cli.read_bytes(model) == 4 * (model.num_parameters - 300 * 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "1.3"], "top_p must be in (0, 1], got 1.3; use 1.0 to disable it"),
        (["--temperature", "-1"], "temperature must be"),
        (["--temperature", "nan"], "temperature must be"),
        (["--top-k", "-5"], "top_k must be"),
        (["--max-new-tokens", "0"], "max_new_tokens must be"),
        (["--num-beams", "0"], "num_beams must be"),
        (["--num-beams", "2", "--stop", "x"], "--stop cannot be used with --num-beams"),
        (["--seed", "-1"], "seed must be in [0, 2**63), got -1"),
        (["--stop", ""], "stop must hold non-empty strings"),
        (["--device", "cuda:63"], "device must be one that this machine has, got 'cuda:63'; use 'cpu'"),
        (["--device", "banana"], "device must be one that PyTorch knows, got 'banana'; use 'cpu'"),
        (["--model", "no-such-model"], "no model or folder named 'no-such-model'; embedded models: "),
        (["--contrastive", "no-such-model"], "no model or folder named 'no-such-model'"),
    ],
)
def test_bad_values_end_with_one_line_and_code_2(generate, options, message):
    code, output, errors = generate("Once", *options)
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1


def test_bad_prompts_end_with_one_line_and_code_2(generate):
    assert generate("")[2] == "error: prompt must hold some text, got none; start with '<|endoftext|>'\n"
    code, output, errors = generate("a b c " * 60)
    assert (code, output) == (2, "") and "context of 64 tokens" in errors
    code, output, errors = generate("\udcff")  # a byte of the command line that is no UTF-8
    assert (code, output) == (2, "") and errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize("arguments", [["generate"], ["generate", "x", "--top-k", "many"], ["dance"], []])
def test_bad_usage_ends_with_one_line_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    errors = capsys.readouterr().err
    assert ending.value.code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "--help" in errors


def test_a_failure_while_decoding_ends_with_code_1(generate, monkeypatch):
    from llmcourse.decoding import loop
    from llmcourse.decoding.errors import NonFiniteLogitsError

    def fails(*args, **settings):
        raise NonFiniteLogitsError("row 0, step 5: the logits hold NaN")
        yield

    monkeypatch.setattr(loop, "stream", fails)
    code, _, errors = generate("Once")
    assert code == 1 and errors == "error: row 0, step 5: the logits hold NaN\n"


def test_interruption_ends_with_code_130(generate, monkeypatch):
    from llmcourse.decoding import loop

    def interrupted(*args, **settings):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(loop, "stream", interrupted)
    assert generate("Once")[0] == 130


@pytest.mark.parametrize(("options", "measured"), [([], []), (["--measure"], [True])])
def test_the_doctor_measures_when_asked_to(options, measured, monkeypatch, capsys):
    from llmcourse import doctor, hardware

    seen = []
    monkeypatch.setattr(hardware, "measure_ceilings", lambda refresh: seen.append(refresh))
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Report((doctor.Finding("machine", "device", "x"),)))
    assert main(["doctor", *options]) == 0
    assert seen == measured


def test_the_doctor_prints_a_page_or_json(monkeypatch, capsys):
    from llmcourse import doctor

    missing = doctor.Finding("packages", "torch", "not installed", "missing", "install it")
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Report((missing,)))
    assert main(["doctor"]) == 1
    assert "→ install it" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Report(()))
    assert main(["doctor", "--json"]) == 0
    assert '"ok": true' in capsys.readouterr().out


def test_help_answers_without_loading_pytorch():
    code = (
        "import sys; from llmcourse.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--top-p" in output and output.endswith("False\n")


def test_text_comes_piece_by_piece_and_ctrl_c_ends_it(tiny_checkpoint):
    options = ["generate", "Once", "--model", str(tiny_checkpoint), "--temperature", "0"]
    stepwise = (  # after each piece it waits for a line from us
        "import signal, sys; from llmcourse import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a background shell ignores
        "write = cli.write\n"
        "cli.write = lambda text: (write(text), sys.stdin.readline())\n"
        f"sys.exit(cli.main({options!r}))"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", stepwise], bufsize=0, env=buffered, **pipes)
    assert read_within(process.stdout, 60) == b"Once"
    pieces = []
    while len(pieces) < 2:
        process.stdin.write(b"\n")
        pieces.append(read_within(process.stdout, 10))
    assert all(pieces)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors


def read_within(pipe, seconds: float) -> bytes:
    """What comes through a pipe next, `b""` if nothing does in time."""
    ready, _, _ = select.select([pipe], [], [], seconds)
    return os.read(pipe.fileno(), 100) if ready else b""


def test_a_reader_that_leaves_is_met_with_silence(tiny_checkpoint):
    options = ["generate", "Once", "--model", str(tiny_checkpoint)]
    process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(timeout=60), errors) == (141, b"")


def test_the_embedded_model_continues_a_story_in_any_locale(capsys):
    options = ["--model", "base", "--top-p", "0.9", "--seed", "0", "--max-new-tokens", "40"]
    arguments = ["generate", "Once upon a time", *options]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    text = subprocess.check_output([*COMMAND, *arguments], env=ascii_only).decode()
    assert text.startswith("Once upon a time") and len(text) > 60
    assert main(arguments) == 0 and capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "65536"], "port must be in [0, 65535], got 65536"),
        (["--max-running", "0"], "max_running must be"),
        (["--blocks", "0"], "num_blocks must be"),
        (["--memory", "-1"], "memory_gb must be"),
        (["--queue-limit", "0"], "queue_limit must be"),
        (["--grace", "-1"], "grace_s must be"),
        (["--device", "cuda:63"], "device must be one that this machine has"),
        (["--model", "no-such-model", "--port", "0"], "no model or folder named 'no-such-model'"),
    ],
)
def test_a_server_with_bad_values_does_not_start(options, message, capsys):
    assert main(["serve", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1


def test_a_server_on_a_port_that_is_taken_does_not_start(tiny_checkpoint, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--model", str(tiny_checkpoint), "--port", str(port)]) == 2
    assert f"error: port must be one that is free on 127.0.0.1, got {port}" in capsys.readouterr().err


def test_a_server_answers_until_ctrl_c(tiny_checkpoint):
    options = ["serve", "--model", str(tiny_checkpoint), "--port", "0", "--device", "cpu", "--blocks", "64"]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([*COMMAND, *options], bufsize=0, **pipes)
    try:
        text = ""
        while not text.endswith("}'\n"):
            piece = read_within(process.stdout, 60)
            assert piece, process.stderr.read()
            text += piece.decode()
        url = text.split(" on ")[1].split("/v1 ")[0]
        body = json.loads(text[text.index("{") : text.rindex("}") + 1])  # of the call that it shows
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
        assert answer["model"] == str(tiny_checkpoint) and answer["usage"]["completion_tokens"] >= 1
        body |= {"temperature": 0, "max_tokens": 40}
        plain, drafted = (
            httpx.post(f"{url}/v1/completions", json=body | {"speculation": option}, timeout=60).json()
            for option in (None, {"kind": "lookup", "draft_length": 6})
        )
        assert drafted["choices"] == plain["choices"]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (0, b"", b"")


def test_a_quantized_model_continues_and_says_where_it_runs(generate, tiny_checkpoint):
    code, output, errors = generate("Once", "--quantize", "int8", "--temperature", "0", "--device", "cpu")
    assert code == 0 and output.startswith("Once")
    assert (
        errors == "warning: int8 has no kernel on cpu in float32 and runs by its reference, which is slower\n"
    )
    plain = generate("Once", "--temperature", "0", "--device", "cpu")
    coarse = generate("Once", "--quantize", "int2-g16", "--temperature", "0", "--device", "cpu")
    assert coarse[1] != plain[1]


def test_fewer_bytes_are_read_of_a_quantized_model(tiny_checkpoint):
    from llmcourse.quantization import quantize

    model = load(tiny_checkpoint).model
    table, head = 300 * 32 * 4, 300 * 32 * 4
    assert cli.read_bytes(model) == model.num_parameters * 4 - table
    layers = sum(p.numel() for name, p in model.named_parameters() if name.endswith("proj.weight"))
    norms = 5 * 32 * 4
    found = cli.read_bytes(quantize(model, "int8"))
    assert head + norms + layers < found < head + norms + layers * 1.3


def test_a_model_is_written_in_fewer_bits_and_read_again(generate, tiny_checkpoint, tmp_path, capsys):
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("Once upon a time there was a model. " * 60)
    arguments = ["quantize", str(tiny_checkpoint), "int4-gptq-g16", str(out), "--device", "cpu"]
    assert main([*arguments, "--text", str(text), "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: {tiny_checkpoint} in int4-gptq-g16, 0.")
    assert main(["generate", "Once", "--model", str(out), "--temperature", "0", "--max-new-tokens", "8"]) == 0
    output, errors = capsys.readouterr()
    assert output.startswith("Once") and "int4-gptq-g16 has no kernel on" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "Once", "--quantize", "int5"], "scheme must be one of int8, "),
        (["quantize", "nowhere", "int5", "out"], "scheme must be one of int8, "),
        (["quantize", "nowhere", "int8", "out"], "no model or folder named 'nowhere'"),
        (
            ["quantize", "draft", "int4-g100", "out", "--device", "cpu"],
            "group_size must divide the 128 columns",
        ),
        (["quantize", "draft", "int8", "."], "holds no quantized checkpoint, and would be replaced"),
        (["quantize", "draft", "int8", "empty/.."], "holds no quantized checkpoint, and would be replaced"),
        (["quantize", "draft", "int4-gptq", "out", "--text", "nothing.txt"], "No such file"),
        (
            ["quantize", "draft", "int4-gptq", "out", "--text", "latin.txt"],
            "--text must be a file in UTF-8, got latin.txt, which is not at byte 2; convert it",
        ),
        (
            ["quantize", "draft", "int8", "out", "--text", "essay.txt"],
            "--text must be left out for int8, which",
        ),
    ],
)
def test_what_cannot_be_quantized_ends_with_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "essay.txt").write_text("mine")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1") * 2)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
