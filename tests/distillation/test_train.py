"""The trainer: every objective learns, killed runs make the same losses again, and nothing broken is kept."""

import itertools
import math
import os
import signal
import subprocess
import sys
from unittest import mock

import pytest
import torch

from llmcourse.distillation import train as loop
from llmcourse.distillation.feature_loss import FeatureWeights
from llmcourse.distillation.features import read_features
from llmcourse.distillation.layer_map import LayerMap
from llmcourse.distillation.losses import Response, forward_kl, hard_loss
from llmcourse.distillation.objective import Objective
from llmcourse.distillation.records import read_records
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.shards import world
from llmcourse.distillation.teacher import Told
from llmcourse.distillation.train import distill
from llmcourse.model import Decoder
from llmcourse.quantization.fake_quant import fake_quantized
from llmcourse.training.tokens import Domain
from tests.distillation.tiny_run import (
    everything,
    killed_at,
    pattern,
    recipe,
    run,
    saved_every_step,
    settings,
    student,
    teacher,
)
from tests.training.tiny import ROOT, tiny_config

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PROGRAM = ["-m", "tests.distillation.tiny_run"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def losses(folder) -> list[float]:
    lines = read_records(folder / "tiny.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step once"
    return [line["loss"] for line in lines]


def assert_same(first: Decoder, second: Decoder) -> None:
    expected = second.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in first.state_dict().items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


class TestLearning:
    @pytest.mark.parametrize(
        "changes",
        [
            {"response": None},
            {},
            {"response": Response("reverse_kl", temperature=2.0)},
            {"response": Response("jensen_shannon", hard_weight=0.5)},
            {"top_k": 16, "response": Response(temperature=2.0)},
            {"accumulation": 2},
            {"features": FeatureWeights(values=1.0)},
            {"own_text": 0.5, "response": Response("reverse_kl")},
            {"response": None, "features": FeatureWeights(), "layer_map": LayerMap(((1, 1),))},
        ],
        ids=str,
    )
    def test_the_loss_falls(self, tmp_path, changes):
        run(tmp_path, settings(steps=60, **changes))
        found = losses(tmp_path)
        assert sum(found[-5:]) < 0.7 * sum(found[:5])

    def test_a_student_comes_to_agree_with_its_teacher(self, tmp_path):
        rows = pattern().windows(0, 16, 12, seed=5)
        expected = teacher()(rows)
        model = run(tmp_path, settings(steps=150))
        before, after = forward_kl(student()(rows), expected), forward_kl(model(rows), expected)
        assert after < before / 4

    def test_without_a_teacher_it_is_ordinary_training(self, tmp_path):
        run(tmp_path, settings(response=None))
        rows = loop.Batches(settings(), [pattern()], student()).parts(0)
        first = next(rows)
        expected = hard_loss(student()(first.rows), first.labels).item()
        assert losses(tmp_path)[0] == pytest.approx(expected, rel=1e-6)

    def test_hard_labels_alone_are_a_training_from_scratch(self, tmp_path):
        run(tmp_path / "a", settings(response=None))
        run(tmp_path / "b", settings(response=Response(hard_weight=1.0)))
        assert losses(tmp_path / "a") == losses(tmp_path / "b")

    def test_parts_add_up_to_the_batch(self, tmp_path, uninterrupted):
        run(tmp_path, settings(accumulation=4))
        assert losses(tmp_path) == pytest.approx(losses(uninterrupted[0]), rel=1e-4)
        with mock.patch.object(loop.Batches, "parts", _first_part_only):
            run(tmp_path / "wrong", settings(accumulation=4))
        assert losses(tmp_path / "wrong") != pytest.approx(losses(uninterrupted[0]), rel=1e-4)

    def test_the_teacher_stays_as_it_is(self, tmp_path):
        model, before = teacher().requires_grad_(True), teacher()
        distill(settings(), student(), model, [pattern()], tmp_path / "tiny.pt")
        assert_same(model, before)
        assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())

    def test_a_fake_quantized_student_learns_in_few_bits(self, tmp_path):
        """From its own weights in full: what 3 bits lost comes back."""
        full = teacher()
        rows, three = pattern().windows(0, 16, 12, seed=5), fake_quantized(full, "int3-g16")
        lost = forward_kl(three(rows), full(rows)).item()
        training = Distillation(recipe(model=full.config, steps=60, matrix_lr=2e-3, other_lr=2e-3))
        assert distill(training, three, full, [pattern()], tmp_path / "tiny.pt")
        assert forward_kl(three(rows), full(rows)).item() < lost / 2


def _first_part_only(self, step):
    """A planted bug: the same quarter of the batch four times."""
    first = next(_parts(self, step))
    return iter([first] * self.distillation.accumulation)


_parts = loop.Batches.parts


def test_the_fused_loss_is_the_whole_one():
    """By its reference: on a GPU its kernel takes its place, which has a contract of its own."""
    rows = pattern().windows(0, 4, 13, seed=1)
    model, wide = student(), teacher()
    told = Told(wide.hidden_states(rows[:, :-1]), wide.lm_head.weight)
    labels = rows[:, 1:].masked_fill(rows[:, 1:] == 3, -100)
    for response in (Response("reverse_kl", 2.0, hard_weight=0.3), Response("jensen_shannon", beta=0.2)):
        found = []
        for fused in (False, True):
            objective = Objective(settings(response=response), model, fused=fused)
            model.zero_grad()
            loss = objective(rows[:, :-1], labels, told)
            loss.backward()
            found.append([loss.detach(), *(weight.grad.clone() for weight in model.parameters())])
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_layers_are_compared_where_something_is_learned():
    """Not at what was given of rows of the student's own, nor at their ends."""
    rows, wide = pattern().windows(0, 4, 13, seed=1), teacher()
    labels = rows[:, 1:].clone()
    labels[:, :4] = labels[1] = -100
    training = settings(response=None, features=FeatureWeights(hidden=0, values=100))
    objective = Objective(training, student(), wide)
    told = read_features(wide, rows[:, :-1], training.pairs(student(), wide).teacher_layers)[1]
    hidden, mine = read_features(objective.student, rows[:, :-1], (1,))
    hard = hard_loss(objective.student.lm_head(hidden), labels)
    found = objective(rows[:, :-1], labels, Told(features=told))
    torch.testing.assert_close(found, hard + objective.feature_loss(mine, told, labels != -100))
    assert found.item() != pytest.approx((hard + objective.feature_loss(mine, told)).item(), rel=1e-3)


def test_nobody_learns_by_heart_what_it_wrote():
    """Hard labels have no part in rows of the student's own."""
    rows, wide = pattern().windows(0, 4, 13, seed=1), teacher()
    told = Told(wide.hidden_states(rows[:, :-1]), wide.lm_head.weight)
    given = (rows[:, :-1], rows[:, 1:], told)
    mixed = Objective(settings(response=Response(hard_weight=0.5)), student())
    assert torch.equal(mixed(*given, True), Objective(settings(), student())(*given))
    assert not torch.equal(mixed(*given, False), mixed(*given, True))


def test_compiled_parts_give_the_same_loss():
    rows, told = pattern().windows(0, 4, 13, seed=1), Told()
    expected = Objective(settings(response=None), student())(rows[:, :-1], rows[:, 1:], told)
    for by_layer in (True, False):
        objective = Objective(settings(response=None), student())
        whole = mock.patch.object(torch, "compile", lambda run: lambda *given: run(*given))
        with whole, mock.patch.object(torch.nn.Module, "compile") as compiled:
            objective.compile_parts(by_layer=by_layer)
        assert compiled.call_count == by_layer
        torch.testing.assert_close(objective(rows[:, :-1], rows[:, 1:], told), expected)


class TestResume:
    def test_a_step_at_a_time_gives_the_same_losses(self, tmp_path, uninterrupted):
        starts, model = 0, None
        while model is None:
            model, starts = run(tmp_path, time_limit_s=-1.0), starts + 1
        assert starts == 6
        assert losses(tmp_path) == losses(uninterrupted[0])
        assert_same(model, uninterrupted[1])

    def test_a_run_is_the_same_every_time(self, tmp_path):
        """Projections begin at random, but not by chance."""
        for name in ("first", "second"):
            run(tmp_path / name, everything())
            torch.rand(3)
        assert losses(tmp_path / "first") == losses(tmp_path / "second")

    def test_own_text_too(self, tmp_path):
        training = settings(own_text=0.5, response=Response("reverse_kl", hard_weight=0.25))
        run(tmp_path / "whole", training)
        while run(tmp_path / "cut", training, time_limit_s=-1.0) is None:
            pass
        assert losses(tmp_path / "cut") == losses(tmp_path / "whole")

    def test_without_its_optimizer_states_a_run_goes_another_way(self, tmp_path, uninterrupted):
        run(tmp_path, time_limit_s=-1.0)
        with mock.patch.object(torch.optim.Muon, "load_state_dict"):
            run(tmp_path)
        assert losses(tmp_path) != losses(uninterrupted[0])

    def test_a_killed_program_goes_on_bit_for_bit(self, tmp_path, uninterrupted):
        command = [sys.executable, *PROGRAM, str(tmp_path), "--kill-at", "4"]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(losses(tmp_path)) == 4
        model = run(tmp_path)
        assert losses(tmp_path) == losses(uninterrupted[0])
        assert_same(model, uninterrupted[1])

    def test_steps_behind_the_last_checkpoint_are_recorded_once(self, tmp_path, uninterrupted):
        run(tmp_path, time_limit_s=-1.0)
        (tmp_path / "tiny.pt").rename(tmp_path / "kept.pt")
        run(tmp_path, records=tmp_path / "other.jsonl", time_limit_s=-1.0)
        os.replace(tmp_path / "kept.pt", tmp_path / "tiny.pt")
        with (tmp_path / "tiny.jsonl").open("a") as file:
            file.write('{"step": 2, "loss": 99.0}\n{"step": 3, "lo')  # killed while it wrote
        run(tmp_path)
        assert losses(tmp_path) == losses(uninterrupted[0])

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_in_the_middle_of_a_step(self, tmp_path, uninterrupted, number):
        with killed_at(2, number), pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        assert torch.load(tmp_path / "tiny.pt", weights_only=True)["step"] == 3, "the step was completed"
        run(tmp_path)
        assert losses(tmp_path) == losses(uninterrupted[0])

    def test_a_finished_run_is_not_trained_again(self, tmp_path, uninterrupted):
        run(tmp_path)
        with mock.patch.object(Objective, "forward", side_effect=AssertionError):
            assert_same(run(tmp_path), uninterrupted[1])

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            ({"steps": 7}, "steps was 6, is 7"),
            ({"response": Response(temperature=2.0)}, "temperature was 1.0, is 2.0"),
            ({"response": Response(hard_weight=0.5)}, "hard_weight was 0.0, is 0.5"),
            ({"response": None}, "teacher was "),
            ({"top_k": 4}, "top_k was None, is 4"),
            ({"accumulation": 2}, "accumulation was 1, is 2"),
        ],
    )
    def test_of_another_configuration(self, tmp_path, changes, difference):
        run(tmp_path, time_limit_s=-1.0)
        with pytest.raises(ValueError) as caught:
            run(tmp_path, settings(**changes))
        assert "tiny.pt was made with another recipe (" in str(caught.value)
        assert difference in str(caught.value) and "remove it" in str(caught.value)

    def test_of_another_text(self, tmp_path):
        run(tmp_path, time_limit_s=-1.0)
        other = mock.patch("tests.distillation.tiny_run.pattern", lambda: pattern(size=4001))
        message = r"recipe \(text was pattern [0-9a-f]{8}, is pattern [0-9a-f]{8}\)"
        with other, pytest.raises(ValueError, match=message):
            run(tmp_path)

    def test_checkpoints_that_take_long_are_written_less_often(self, tmp_path):
        """By a clock that each checkpoint moves on by 30 s, half of the time at most: a step takes 2 s."""
        now, whole = iter(range(10**6)), loop.save_state

        def slow(*given):
            written.append(given[3])
            for _ in range(30):
                next(now)
            whole(*given)

        written = []
        clock = mock.Mock(monotonic=lambda: float(next(now)))
        with mock.patch.multiple(loop, SAVE_EVERY_S=10.0, SAVING=0.5, save_state=slow, time=clock):
            run(tmp_path, settings(steps=200))
        pauses = [after - before for before, after in itertools.pairwise(written[:-1])]
        assert written[0] < 15 and min(pauses) > 25, written

    def test_of_another_student_or_teacher(self, tmp_path):
        run(tmp_path, time_limit_s=-1.0)
        with pytest.raises(ValueError, match=r"recipe \(student was [0-9a-f]+, is [0-9a-f]+\)"):
            run(tmp_path, model=student(seed=1))
        other = mock.patch("tests.distillation.tiny_run.teacher", student)
        with other, pytest.raises(ValueError, match=r"recipe \(teacher was [0-9a-f]+, is [0-9a-f]+\)"):
            run(tmp_path)


def not_finite_from(call: int, value: float = math.nan):
    """A loss that is not finite from one call on, and neither are its gradients."""
    whole, calls = Objective.forward, iter(range(10**9))

    def forward(self, *given):
        loss = whole(self, *given)
        return loss * value if next(calls) >= call else loss

    return mock.patch.object(Objective, "forward", forward)


class TestDivergence:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_the_step_and_the_part_of_its_batch_are_named(self, tmp_path, value):
        with not_finite_from(7, value), pytest.raises(FloatingPointError) as caught:
            run(tmp_path, settings(accumulation=2))
        text = f"tiny, step 4 (batch 4, part 2 of 2): the loss is {value}; there is no checkpoint yet; lower"
        assert text in str(caught.value)
        assert len(losses(tmp_path)) == 3 and not (tmp_path / "tiny.pt").exists()

    def test_the_last_good_checkpoint_is_kept(self, tmp_path, uninterrupted):
        expected = pytest.raises(FloatingPointError, match=r"step 4 .*the last checkpoint is .*tiny\.pt")
        with saved_every_step(), not_finite_from(3), expected:
            run(tmp_path)
        state = torch.load(tmp_path / "tiny.pt", weights_only=True)
        assert state["step"] == 3 and all(t.isfinite().all() for t in state["model"].values())
        run(tmp_path)
        assert losses(tmp_path) == losses(uninterrupted[0])

    @pytest.mark.parametrize("step", [3, 6])
    def test_a_gradient_that_a_finite_loss_hides(self, tmp_path, step):
        """NaN: the root of zero. The step that it spoils is named, not the next one; the last has none."""
        whole, calls = Objective.forward, iter(range(10**9))

        def forward(self, *given):
            root = (0 * self.student.lm_head.weight.sum()).sqrt()
            return whole(self, *given) + root if next(calls) == step - 1 else whole(self, *given)

        message = rf"step {step} \(batch {step}\): the norm of the gradient is nan"
        with (
            mock.patch.object(Objective, "forward", forward),
            pytest.raises(FloatingPointError, match=message),
        ):
            run(tmp_path)
        assert len(losses(tmp_path)) == step - 1 and not (tmp_path / "tiny.pt").exists()

    def test_weights_that_loss_and_gradient_hide(self, tmp_path):
        """The last step's update, behind which no loss is computed."""

        def infinite(optimizers, index, recipe):
            loop_rates(optimizers, index, recipe)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = math.inf if index == 5 else group["lr"]

        loop_rates = loop.set_rates
        expected = pytest.raises(FloatingPointError, match="step 6: weights or optimizer states are not fin")
        with mock.patch.object(loop, "set_rates", infinite), expected:
            run(tmp_path)
        assert not (tmp_path / "tiny.pt").exists()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(folder, everything())
    return folder


class TestProcesses:
    def test_two_give_the_losses_of_one(self, tmp_path, one_process):
        """Up to the rounding of sums, which Muon's bf16 iterations enlarge."""
        command = [*TORCHRUN, "2", *PROGRAM, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert losses(tmp_path) == pytest.approx(losses(one_process), rel=1e-4)
        states = [torch.load(f / "tiny.pt", weights_only=True) for f in (tmp_path, one_process)]
        for name, weight in states[1]["model"].items():
            torch.testing.assert_close(states[0]["model"][name], weight, rtol=0, atol=1e-3)
        # What two processes leave is whole: one finds the run finished.
        with mock.patch.object(Objective, "forward", side_effect=AssertionError):
            assert run(tmp_path, everything()) is not None

    def test_a_half_of_the_batch_would_be_noticed(self, tmp_path, one_process):
        with mock.patch.object(loop, "Batches", lambda *given: _Half(*given)):
            run(tmp_path, everything())
        assert losses(tmp_path) != pytest.approx(losses(one_process), rel=1e-4)

    def test_two_go_on_where_one_stopped(self, tmp_path, one_process):
        run(tmp_path, everything(), time_limit_s=-1.0)
        command = [*TORCHRUN, "2", *PROGRAM, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert losses(tmp_path) == pytest.approx(losses(one_process), rel=1e-4)


class _Half(loop.Batches):
    def __init__(self, distillation, domains, model, rank, count):
        super().__init__(distillation, domains, model, rank=0, world=2)


class TestRefused:
    def test_another_vocabulary(self, tmp_path):
        other = Decoder(tiny_config(vocab_size=65)).requires_grad_(False)
        with pytest.raises(ValueError, match="vocabulary must be of 64 tokens as the student's, got 65"):
            distill(settings(), student(), other, [pattern()], tmp_path / "tiny.pt")

    def test_no_teacher(self, tmp_path):
        with pytest.raises(ValueError, match="teacher must be given for these losses, got None"):
            distill(settings(), student(), None, [pattern()], tmp_path / "tiny.pt")

    def test_no_text(self, tmp_path):
        with pytest.raises(ValueError, match="domains must be at least one, got none; give some text"):
            distill(settings(), student(), teacher(), [], tmp_path / "tiny.pt")

    def test_text_of_another_vocabulary(self, tmp_path):
        other = Domain("other", torch.arange(400, dtype=torch.int32) % 65)
        with pytest.raises(
            ValueError, match="tokens of 'other' must be below the vocabulary, 64, got 64; encode"
        ):
            distill(settings(), student(), teacher(), [pattern(), other], tmp_path / "tiny.pt")

    def test_a_student_in_16_bits(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"student must be in torch.float32, .* got torch.bfloat16; take stu"
        ):
            distill(settings(), student().bfloat16(), teacher(), [pattern()], tmp_path / "tiny.pt")

    def test_too_short_a_text(self, tmp_path):
        with pytest.raises(ValueError, match="'pattern' has 20 tokens, fewer than two windows of 13"):
            distill(settings(), student(), teacher(), [pattern(size=20)], tmp_path / "tiny.pt")

    def test_a_student_of_another_recipe(self, tmp_path):
        with pytest.raises(ValueError, match="student must be the recipe's model"):
            distill(settings(), teacher(), teacher(), [pattern()], tmp_path / "tiny.pt")

    def test_a_batch_that_does_not_come_out_even(self, tmp_path):
        with pytest.raises(ValueError, match=r"batch_size must be a multiple of 3 \(1 processes × 3 parts\)"):
            run(tmp_path, settings(accumulation=3))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"own_text": 1.5}, r"own_text must be in \[0, 1\], got 1.5"),
            ({"accumulation": 0}, "accumulation must be an integer of at least 1, got 0"),
            ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
            ({"top_k": 4, "response": None}, "top_k must be None without a teacher's response, got 4"),
            ({"layer_map": LayerMap(((1, 1),))}, "layer_map must be None without features"),
            ({"own_text": 0.5, "response": None}, "own_text must be 0 without a teacher's response"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            settings(**changes)

    def test_layers_that_are_not_there(self, tmp_path):
        training = settings(features=FeatureWeights(), layer_map=LayerMap(((1, 3),)))
        with pytest.raises(
            ValueError, match=r"teacher's layer must be in \[1, 2\], got 3; the pair \(1, 3\)"
        ):
            run(tmp_path, training)

    def test_widths_that_nothing_projects(self, tmp_path):
        with pytest.raises(ValueError, match="student's width must be the teacher's, 48, got 32; learn a Φ"):
            run(tmp_path, settings(features=FeatureWeights(project=False)))

    def test_more_than_the_whole_vocabulary(self, tmp_path):
        with pytest.raises(ValueError, match="top_k must be below the vocabulary, 64, got 64; leave it out"):
            run(tmp_path, settings(top_k=64))

    def test_a_longer_row_than_the_teacher_reads(self, tmp_path):
        short = Decoder(tiny_config(vocab_size=64, max_position_embeddings=8))
        with pytest.raises(ValueError, match="sequence_length must be at most the teacher's context, 8, got"):
            distill(settings(), student(), short, [pattern()], tmp_path / "tiny.pt")


def test_alone_there_is_one_process():
    assert world() == (0, 1)
