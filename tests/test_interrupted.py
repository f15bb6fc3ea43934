"""Ctrl-C in the middle of a cell: nothing is left half done, and the same thing run again is right."""

import copy
import signal
from contextlib import contextmanager

import pytest
import torch

from llmcourse import pretrained, progress, timing
from llmcourse.decoding import DecodeEngine, generate
from llmcourse.figures import style as look
from llmcourse.figures.widgets import BatchingTimeline, DistillationExplorer, SamplingExplorer
from llmcourse.hardware import ceilings
from llmcourse.quantization import calibration, quantize, stored
from llmcourse.serving import (
    BlockPool,
    ContinuousBatching,
    Engine,
    PagedCache,
    PagedRunner,
    Request,
    Scheduler,
)

PROMPT = "Once upon a time"


@pytest.fixture(autouse=True)
def heeded():
    """What a shell starts in the background ignores Ctrl-C, these tests with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def loaded(tiny_checkpoint):
    return pretrained.load(tiny_checkpoint)


@contextmanager
def interrupted(owner, name: str, at: int):
    """A real SIGINT at the so many-th call of a method, and the KeyboardInterrupt that comes of it."""
    before, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return before(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        with pytest.raises(KeyboardInterrupt):
            yield
    assert len(calls) >= at


def in_second_layer(model):
    """Where a pass is half way."""
    return model.model.layers[1].mlp, "forward"


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def state(model) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.filterwarnings("ignore::llmcourse.quantization.calibration.CalibrationWarning")
@pytest.mark.parametrize("scheme", ["int8", "int4-gptq", "int4-awq", "smoothquant-w8a8"])
@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_model_that_is_being_quantized_keeps_its_weights(loaded, scheme, at):
    from llmcourse.quantization import models

    model, rows = loaded.model, torch.arange(4 * 48).view(4, 48) % 300
    before = state(model)
    with interrupted(models, "replace_layer", at):
        quantize(model, scheme, rows)
    assert same(before, model.state_dict()) and hooks(model) == 0
    again, fresh = quantize(model, scheme, rows), quantize(copy.deepcopy(model), scheme, rows)
    assert same(again.state_dict(), fresh.state_dict()) and same(before, model.state_dict())


@pytest.mark.filterwarnings("ignore::llmcourse.quantization.calibration.CalibrationWarning")
@pytest.mark.parametrize("way", ["calibrate", "layer_by_layer"])
def test_calibration_takes_its_hooks_away(loaded, way):
    model, rows = loaded.model, torch.arange(4 * 48).view(4, 48) % 300
    with interrupted(*in_second_layer(model), 1):
        list(getattr(calibration, way)(model, rows, batch_size=2))
    assert hooks(model) == 0


def test_hooks_go_also_when_not_all_were_there_yet(loaded):
    linears = calibration.linear_layers(loaded.model)
    last = list(linears.values())[-1]
    with interrupted(last, "register_forward_pre_hook", 1), calibration.Observer(linears):
        pass
    assert hooks(loaded.model) == 0


@pytest.mark.parametrize("step", ["save_file", "_write"])
def test_what_was_saved_before_stays_whole(loaded, tiny_checkpoint, tmp_path, step):
    folder = tmp_path / "small"
    stored.save(quantize(loaded.model, "int8"), folder, tiny_checkpoint)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with interrupted(stored, step, 1):
        stored.save(quantize(loaded.model, "int4"), folder, tiny_checkpoint)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_what_was_saved_before_stays_even_while_it_is_replaced(loaded, tiny_checkpoint, tmp_path):
    folder = tmp_path / "small"
    stored.save(quantize(loaded.model, "int8"), folder, tiny_checkpoint)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with interrupted(type(folder), "rename", 2):
        stored.save(quantize(loaded.model, "int4"), folder, tiny_checkpoint)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_engine_begins_again(loaded, at):
    model, tokenizer = loaded
    prompt = [tokenizer.encode_prompt(PROMPT)]
    alone = generate(model, prompt, max_new_tokens=8)[0].tokens
    for source in (DecodeEngine(copy.deepcopy(model)), model):
        with (
            interrupted(torch.Tensor, "argmax", at)
            if source is not model
            else interrupted(*in_second_layer(model), at)
        ):
            generate(source, prompt, max_new_tokens=8)
        assert generate(source, prompt, max_new_tokens=8)[0].tokens == alone


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_service_goes_on_where_it_was_interrupted(loaded, at):
    model, tokenizer = loaded
    requests = [Request(str(n), tokenizer.encode_prompt(PROMPT[: 9 + n]), max_tokens=4 + n) for n in range(3)]

    def engine():
        scheduler = Scheduler(BlockPool(16, 16), ContinuousBatching(), max_running=2)
        served = Engine(scheduler, PagedRunner(model, PagedCache(model, 16, 16), max_running=2))
        return served, [served.add(request) for request in requests]

    alone, expected = engine()
    list(alone.stream())
    served, states = engine()
    with interrupted(served.runner, "run", at):
        list(served.stream())
    list(served.stream())
    assert [each.generated for each in states] == [each.generated for each in expected]


def test_a_view_answers_after_its_model_was_interrupted(loaded):
    models = {"tiny": tuple(loaded)}
    view, fresh = SamplingExplorer(models, PROMPT), SamplingExplorer(models, "A")
    with interrupted(*in_second_layer(loaded.model), 1):
        view.prompt.value = "A"
    view.refresh()
    assert view.state.draw == fresh.state.draw and view.picture.alt == fresh.picture.alt
    assert view._image.value == fresh._image.value


def test_a_view_answers_after_its_drawing_was_interrupted(loaded):
    view, fresh = (SamplingExplorer({"tiny": tuple(loaded)}, PROMPT) for _ in range(2))
    with interrupted(view.picture.canvas, "copy_from_bbox", 1):
        view.picture.still_key = None
        view.picture._still = None
        view.sliders["top_k"].value = 7
    for each in (view, fresh):
        each.sliders["top_k"].value = 9
    assert view._image.value == fresh._image.value
    assert look.DRAWING.acquire(blocking=False)
    look.DRAWING.release()


def test_a_preset_that_was_interrupted_can_be_chosen_again():
    view, fresh = BatchingTimeline(), BatchingTimeline()
    with interrupted(view, "refresh", 1):
        view.preset.value = "a crowd at once"
    assert not view._setting
    view.slots.value, fresh.slots.value = 3, 3
    for each in (view, fresh):
        each.preset.value = None
        each.preset.value = "a crowd at once"
    assert view.picture.alt == fresh.picture.alt


def test_a_text_that_was_interrupted_can_be_read_again(loaded):
    view = DistillationExplorer({"a": tuple(loaded), "b": tuple(loaded)}, PROMPT)
    with interrupted(*in_second_layer(loaded.model), 2):
        view.prompt.value = "A b c"
    view.prompt.value = PROMPT
    before = view.picture.alt
    view.position.value = 1
    assert view.message == "" and view.picture.alt != before


def test_measured_ceilings_are_whole_or_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(ceilings, "BUDGET_S", 1e-6)
    monkeypatch.setattr(ceilings, "large_buffer_bytes", lambda device: 2**20)
    precision = torch.get_float32_matmul_precision()
    with interrupted(ceilings, "_product", 2):
        ceilings.measure_ceilings("cpu", folder=tmp_path)
    assert torch.get_float32_matmul_precision() == precision and list(tmp_path.iterdir()) == []


def test_a_bar_says_how_far_it_came(capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")
    with pytest.raises(KeyboardInterrupt):
        for item in progress.bar(range(4), "items"):
            if item == 2:
                signal.raise_signal(signal.SIGINT)
    assert "items" in capfd.readouterr().err
    assert timing.measure(lambda: None, repeats=2, progress="again").median_s < 1


def test_the_interrupt_itself_is_seen(loaded):
    """Else every test above could pass."""
    with pytest.raises(BaseException, match="DID NOT RAISE"), interrupted(*in_second_layer(loaded.model), 9):
        loaded.model(torch.tensor([[1, 2]]))
