"""The loop: it learns, it can be stopped and resumed, and it leaves no damaged checkpoint behind."""

import math
import os
import signal
from unittest import mock

import pytest
import torch

from llmcourse.model import Decoder
from llmcourse.training import pretrain as loop
from llmcourse.training.pretrain import NextTokenLoss, init_weights, pretrain
from llmcourse.training.tokens import Domain
from tests.training.tiny import interrupted_at, tiny_config, tiny_recipe

CPU = torch.device("cpu")
PATTERN = Domain("pattern", (torch.arange(4000) % 7 * 5 + 3).int())


def recipe(**changes):
    """A model of vocabulary 64 and hidden size 32."""
    return tiny_recipe(
        **dict(model=tiny_config(vocab_size=64), mix={"pattern": 1.0}, matrix_lr=0.01) | changes
    )


def train(path, limit_s: float = math.inf, **changes) -> Decoder | None:
    return pretrain(recipe(**changes), [PATTERN], path, device=CPU, compile_model=False, time_limit_s=limit_s)


def assert_same(first: Decoder, second: Decoder) -> None:
    expected = second.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in first.state_dict().items())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work" / "tiny.pt"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Decoder:
    return train(tmp_path_factory.mktemp("whole") / "tiny.pt")


def test_a_pattern_is_learnt(path):
    model = train(path, steps=150, other_lr=0.01)
    rows = PATTERN.windows(0, 8, 33, seed=9)
    guess = Decoder(recipe().model)
    init_weights(guess, 1)
    with torch.no_grad():
        assert NextTokenLoss(guess)(rows).item() == pytest.approx(math.log(64), abs=0.2)
        assert NextTokenLoss(model)(rows).item() < 0.2
    assert torch.equal(model(rows[:, :20]).argmax(-1)[:, 1:], rows[:, 2:21])


def test_the_loss_is_of_every_token_given_those_before():
    model, rows = Decoder(recipe().model), PATTERN.windows(0, 3, 9, seed=0)
    init_weights(model, 0)
    logs = model(rows[:, :8]).log_softmax(-1)
    expected = -sum(logs[b, t, rows[b, t + 1]] for b in range(3) for t in range(8)) / 24
    torch.testing.assert_close(NextTokenLoss(model)(rows), expected)


def test_rates_follow_the_schedule(path):
    with mock.patch.object(loop, "set_rates", wraps=loop.set_rates) as rates:
        train(path)
    assert [call.args[1] for call in rates.call_args_list] == list(range(6))
    last = [state["param_groups"][0]["lr"] for state in torch.load(path, weights_only=True)["optimizers"]]
    assert last == pytest.approx([0.01 / 4, 0.006 / 4]), "the last of 4 steps that fall to zero"


class TestInitialWeights:
    def test_deviations(self):
        model = Decoder(tiny_config(vocab_size=3000, hidden_size=128, num_layers=2, intermediate_size=256))
        init_weights(model, 0)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                assert (parameter == 1).all(), "norms begin as they are"
                continue
            expected = 0.01 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            deviation = 5 * expected / math.sqrt(2 * parameter.numel())  # false alarm: one in a million
            assert abs(parameter.std().item() - expected) < deviation, name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name

    def test_the_seed_decides(self):
        models = [Decoder(tiny_config()) for _ in range(3)]
        for model, seed in zip(models, (0, 0, 1), strict=True):
            init_weights(model, seed)
        assert_same(models[0], models[1])
        assert not torch.equal(models[0].lm_head.weight, models[2].lm_head.weight)


class TestResume:
    def test_a_step_at_a_time_gives_the_same_weights(self, path, uninterrupted):
        starts, model = 0, None
        while model is None:
            model, starts = train(path, limit_s=-1.0), starts + 1
            assert torch.load(path, weights_only=True)["step"] == min(starts, 6)
        assert starts == 7
        assert_same(model, uninterrupted)

    def test_without_its_optimizer_states_a_run_goes_another_way(self, path, uninterrupted):
        """What the test above would miss if momentum did not matter here."""
        train(path, limit_s=-1.0)
        with mock.patch.object(torch.optim.Muon, "load_state_dict"):
            model = train(path)
        assert not torch.equal(model.lm_head.weight, uninterrupted.lm_head.weight)

    def test_a_finished_run_is_not_trained_again(self, path, uninterrupted):
        assert_same(train(path), uninterrupted)
        with mock.patch.object(NextTokenLoss, "forward", side_effect=AssertionError):
            assert_same(train(path), uninterrupted)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_in_the_middle_of_a_step(self, path, uninterrupted, number):
        before = signal.getsignal(number)
        with interrupted_at(2, number), pytest.raises(KeyboardInterrupt):
            train(path)
        assert torch.load(path, weights_only=True)["step"] == 3, "the step was completed"
        assert signal.getsignal(number) is before
        assert_same(train(path), uninterrupted)

    def test_checkpoints_are_written_every_minute(self, path, monkeypatch):
        clock = iter(range(0, 10_000, 25))
        monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
        with mock.patch.object(loop, "save_state", wraps=loop.save_state) as save:
            train(path, steps=8)
        assert [call.args[3] for call in save.call_args_list] == [3, 6, 8]

    def test_a_write_that_fails_leaves_the_old_checkpoint(self, path, uninterrupted):
        train(path, limit_s=-1.0)

        def cut_short(state, file):
            file.write_bytes(b"half")
            raise OSError("no space left on device")

        with mock.patch.object(torch, "save", cut_short), pytest.raises(OSError, match="no space"):
            train(path, limit_s=-1.0)
        assert torch.load(path, weights_only=True)["step"] == 1
        assert_same(train(path), uninterrupted)


class TestCheckpoint:
    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            ({"steps": 7}, "steps was 6, is 7"),
            ({"mix": {"pattern": 0.5}}, "mix was {'pattern': 1.0}, is {'pattern': 0.5}"),
            ({"seed": 1, "matrix_lr": 0.02}, "matrix_lr was 0.01, is 0.02; seed was 0, is 1"),
            ({"model": tiny_config(vocab_size=65)}, "'vocab_size': 65"),
        ],
    )
    def test_of_another_recipe(self, path, changes, difference):
        train(path, limit_s=-1.0)
        with pytest.raises(ValueError) as caught:
            train(path, **changes)
        assert f"{path} was made with another recipe (" in str(caught.value)
        assert difference in str(caught.value) and "remove it" in str(caught.value)

    def test_damaged(self, path):
        train(path, limit_s=-1.0)
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for content in (b"", b"text", os.urandom(5000), whole[:-500], whole[:middle], flipped):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"tiny\.pt is damaged \(.+\); remove it to train from the"):
                train(path)
            assert path.read_bytes() == content
        path.write_bytes(whole)
        assert train(path) is not None

    @pytest.mark.parametrize("content", [{"weights": torch.ones(2)}, torch.ones(2), [1]])
    def test_something_else(self, path, content):
        path.parent.mkdir()
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"tiny\.pt is damaged"):
            train(path)

    def test_code_in_it_is_not_run(self, path, tmp_path):
        class Explosive:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "exploded"),)

        path.parent.mkdir()
        torch.save(Explosive(), path)
        with pytest.raises(ValueError, match="is damaged"):
            train(path)
        assert not (tmp_path / "exploded").exists()

    def test_a_file_that_cannot_be_read_is_not_called_damaged(self, path):
        train(path, limit_s=-1.0)
        locked = mock.patch.object(torch, "load", side_effect=PermissionError(13, "Permission denied"))
        with locked, pytest.raises(PermissionError):
            train(path)

    def test_one_of_several_processes_writes_it(self, path):
        model = Decoder(recipe().model)
        for rank, written in ((1, False), (0, True)):
            run = loop._Run(recipe(), [PATTERN], model, [], model, path, CPU, rank, world=2)
            run.save(3)
            assert path.exists() is written


def not_finite_from(number: int, value: float = math.nan):
    """A loss that is not finite from one step on, and neither are its gradients."""
    whole, calls = NextTokenLoss.forward, iter(range(10**9))

    def forward(self, rows):
        loss = whole(self, rows)
        return loss * value if next(calls) >= number else loss

    return mock.patch.object(NextTokenLoss, "forward", forward)


def gradient_not_finite_at(number: int):
    """A finite loss whose gradient is not: the root of zero."""
    whole, calls = NextTokenLoss.forward, iter(range(10**9))

    def forward(self, rows):
        loss = whole(self, rows)
        root = (0 * self.model.lm_head.weight.sum()).sqrt()
        return loss + root if next(calls) == number else loss

    return mock.patch.object(NextTokenLoss, "forward", forward)


def assert_finite_checkpoint(path, step: int) -> None:
    state = torch.load(path, weights_only=True)
    assert state["step"] == step
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


class TestDivergence:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_the_run_stops_and_names_the_step(self, path, value):
        with not_finite_from(3, value), pytest.raises(FloatingPointError) as caught:
            train(path, steps=120, sequence_length=4)
        assert "tiny, step 50: the loss is " in str(caught.value), "looked at every 50 steps"
        assert "there is no checkpoint yet" in str(caught.value) and "lower matrix_lr" in str(caught.value)
        assert not path.exists()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_the_last_checkpoint_is_finite_and_is_kept(self, path, monkeypatch, uninterrupted, value):
        monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)  # at every step
        with not_finite_from(3, value), pytest.raises(FloatingPointError) as caught:
            train(path)
        assert f"tiny, step 3: the loss is {value}; the last checkpoint is {path}" in str(caught.value)
        assert_finite_checkpoint(path, 3)
        assert_same(train(path), uninterrupted)

    def test_not_even_when_it_must_stop(self, path):
        train(path, limit_s=-1.0)
        with not_finite_from(0), pytest.raises(FloatingPointError, match="step 1"):
            train(path, limit_s=-1.0)
        with not_finite_from(1), interrupted_at(1), pytest.raises(FloatingPointError, match="step 2"):
            train(path)
        assert_finite_checkpoint(path, 1)

    def test_weights_that_a_finite_loss_hides(self, path, monkeypatch):
        """The last step's loss is computed before its update: nothing looks at the weights again."""
        with gradient_not_finite_at(5), pytest.raises(FloatingPointError) as caught:
            train(path)
        assert "step 5: weights or optimizer states are not finite" in str(caught.value)
        assert not path.exists()
        monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
        with gradient_not_finite_at(2), pytest.raises(FloatingPointError, match="step 2: weights"):
            train(path)
        assert_finite_checkpoint(path, 2)


def test_processes_must_divide_the_batch(path, monkeypatch):
    monkeypatch.setattr(loop.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(loop.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(loop.dist, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 processes, got 4"):
        train(path)
