"""A step that is replayed: what it must keep, what it must read anew; on a GPU also the recording itself."""

import copy

import pytest
import torch

from llmcourse.early_exit.classifier.methods import METHODS
from llmcourse.training import paced
from llmcourse.training.classifier import masked
from llmcourse.training.classifier.fine_tune import Tuning, fine_tune, start
from llmcourse.training.classifier.masked import hide
from llmcourse.training.classifier.next_passage import GAP, pair_rows
from llmcourse.training.classifier.setting import Setting
from llmcourse.training.muon import BatchedMuon
from llmcourse.training.paced import Pace, train
from llmcourse.training.step_graph import recorded_update
from tests.early_exit.classifier.tiny import SIZE, VOCAB, tiny_data, tiny_encoder

CPU = torch.device("cpu")
TUNING = Tuning(batch_size=32, lr=5e-3, hidden=0.0)


def played(step, device, keep):
    """A recording for the CPU: runs twice beforehand as a GPU's does, and gives back what is to be kept."""
    contents = [tensor.clone() for tensor in keep]
    step()
    step()
    for tensor, held in zip(keep, contents, strict=True):
        tensor.copy_(held)
    return step


def model_and_optimizers(seed=0, device=CPU):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(others, 0.01, fused=True)  # as on a GPU: its count of steps is a tensor too
    return model, [BatchedMuon(matrices, lr=0.02, weight_decay=0.1), adamw]


def trained(recorded, steps=12, device=CPU):
    model, optimizers = model_and_optimizers(device=device)
    generator = torch.Generator().manual_seed(1)
    batches = ((torch.randn(4, 6, generator=generator).to(device),) for _ in range(10**6))
    loss_of = lambda x: (model(x) - x.sum(1)).square().mean()  # noqa: E731
    if steps:
        train("t", loss_of, batches, optimizers, Pace(steps), device, recorded=recorded)
    return [p.detach() for p in model.parameters()]


@pytest.fixture
def played_on_the_cpu(monkeypatch):
    monkeypatch.setattr(paced, "recorded_update", lambda *given: recorded_update(*given, record=played))


def test_replaying_trains_as_plain_steps_do(played_on_the_cpu):
    """Other batches and another rate at every step; what recording took is undone, states as well."""
    before, plain, replayed = trained(False, steps=0), trained(False), trained(True)
    for first, one, other in zip(before, plain, replayed, strict=True):
        torch.testing.assert_close(one, other)
        assert (first - one).abs().max() > 1e-3


def test_states_that_were_there_are_kept():
    model, optimizers = model_and_optimizers()
    batch = (torch.ones(4, 6),)
    update = lambda given: paced._update(lambda x: model(x).mean(), given, optimizers, CPU)  # noqa: E731
    update(batch)
    states = [copy.deepcopy(list(optimizer.state.values())) for optimizer in optimizers]
    recorded_update(update, batch, optimizers, CPU, played)
    for optimizer, known in zip(optimizers, states, strict=True):
        for now, then in zip(optimizer.state.values(), known, strict=True):
            assert all(torch.equal(now[name], then[name]) for name in then)


def test_rates_are_filled_in_place():
    """A recording holds an address, not a number."""
    model, optimizers = model_and_optimizers()
    recorded_update(lambda given: model(*given).mean().detach(), (torch.ones(4, 6),), optimizers, CPU, played)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    paced._set_rates(optimizers, [[0.02], [0.01]], 0.5)
    after = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert all(one is other for one, other in zip(rates, after, strict=True))
    assert [round(rate.item(), 6) for rate in rates] == [0.01, 0.005]


def test_losses_are_not_overwritten_by_the_next_step():
    _, optimizers = model_and_optimizers()
    replay = recorded_update(lambda x: x[0].mean(), (torch.zeros(2),), optimizers, CPU, played)
    first, second = replay((torch.ones(2),)), replay((torch.zeros(2),))
    assert first == 1 and second == 0


class TestNothingIsAskedOfTheDevice:
    """A device that holds no numbers refuses every such question."""

    def test_the_refusal(self):
        with pytest.raises(RuntimeError, match="meta"):
            torch.zeros((), device="meta").item()

    @pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
    def test_losses_of_the_methods(self, method):
        classifier = method.build(tiny_encoder(), 2).train().to("meta")
        tokens = torch.zeros(4, 9, dtype=torch.int64, device="meta")
        for stage in method.stages:
            loss = stage.loss(classifier, tokens, torch.zeros(4, dtype=torch.int64, device="meta"))
            loss.backward()
            assert loss.is_meta
            torch.nn.utils.clip_grad_norm_(stage.trained(classifier), 1.0)

    def test_muon(self):
        matrix = torch.nn.Parameter(torch.zeros(4, 6, device="meta"))
        matrix.grad = torch.zeros_like(matrix)
        optimizer = BatchedMuon([matrix], lr=0.1, weight_decay=0.1)
        optimizer.param_groups[0]["lr"] = torch.zeros((), device="meta")
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs")
class TestOnAGPU:
    @pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
    def test_a_recorded_fine_tuning_learns_as_a_plain_one(self, method):
        """The same batches and rates; dropout draws other numbers, so what is compared is that both learn."""
        device = torch.device("cuda")
        data = tiny_data(800).to(device)
        right = []
        for recorded in (False, True):
            encoder = tiny_encoder(2).to(device)
            previous = None
            if method.after is not None:
                first = next(one for one in METHODS if one.name == method.after)
                previous = start(first, encoder, 2, 0)
                fine_tune(first, previous, data, 60, name="first", tuning=TUNING, recorded=recorded)
            classifier = start(method, encoder, 2, 0, previous)
            fine_tune(method, classifier, data, 60, name="t", tuning=TUNING, recorded=recorded)
            answers = classifier(data.tokens)[:, -1].argmax(-1)
            right.append((answers == data.labels).float().mean().item())
        assert min(right) > 0.9, right

    def test_both_kinds_of_optimizers_make_the_same_steps(self):
        """Up to the order of sums: a tenth of the way is far more than that."""
        device = torch.device("cuda")
        first, plain, replayed = (trained(*how, device=device) for how in ((False, 0), (False,), (True,)))
        for start_, one, other in zip(first, plain, replayed, strict=True):
            assert (one - other).norm() < 0.1 * (one - start_).norm()

    def test_pre_training_learns_what_it_is_shown(self):
        """One batch again and again; both objectives together begin near ln 60 + ln 2."""
        device, generator = torch.device("cuda"), torch.Generator("cuda").manual_seed(0)
        encoder, head = tiny_encoder(2).to(device), torch.nn.Linear(SIZE, 2).to(device)
        windows = torch.randint(4, VOCAB, (32, 16 + GAP), generator=generator, device=device)
        rows, follows = pair_rows(windows, (20, 12), generator)
        batch = (*hide(rows, VOCAB, generator), rows, follows)
        optimizers = masked._optimizers(encoder, head, Setting())
        loss_of = lambda *given: masked.pair_loss(encoder, head, *given)  # noqa: E731
        how = {"device": device, "recorded": True}
        end = train("t", loss_of, iter(lambda: batch, None), optimizers, Pace(200), **how)
        assert end.loss < 2.0
