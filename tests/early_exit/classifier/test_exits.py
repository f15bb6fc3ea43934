"""Running layer by layer finds what all layers at once say; past and future against their definition."""

import pytest
import torch
import torch.nn.functional as F

from llmcourse.early_exit.classifier.exits import SeparateExits
from llmcourse.early_exit.classifier.methods import METHODS, PAST_FUTURE
from llmcourse.early_exit.classifier.methods.past_future import (
    PastFuture,
    first_deviation,
    imitation_loss,
    past_future_loss,
)
from llmcourse.early_exit.classifier.taken import exits_taken
from llmcourse.early_exit.rules import EntropyRule, PatienceRule, entropy
from tests.early_exit.classifier.tiny import LAYERS, SIZE, VOCAB, tiny_encoder, tiny_rows

CLASSES = 3
RULES = ["all", "half", "none", "none but the last", "patient", "impatient"]


def untrained(method, scale: float = 6.0):
    """With weights large enough for the exits to differ."""
    torch.manual_seed(1)
    classifier = method.build(tiny_encoder(scale=scale), CLASSES)
    for parameter in classifier.parameters():
        if parameter.ndim == 3:  # those of past and future, whose votes are sums
            parameter.data *= 4
    return classifier.eval()


def rule_for(name: str, logits: torch.Tensor):
    """`half` is a threshold between two entropies, where rounding decides nothing."""
    if name == "half" and logits.shape[1] > 1:
        seen = entropy(logits[:, 0]).sort().values
        middle = len(seen) // 2
        return EntropyRule(seen[middle - 1 : middle + 1].mean().item())
    named = {"all": None, "none": EntropyRule(0), "none but the last": EntropyRule(9)}
    return {**named, "half": None, "patient": PatienceRule(9), "impatient": PatienceRule(1)}[name]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("name", RULES)
def test_an_answer_is_that_of_the_exit_that_the_rule_takes(method, name):
    classifier, rows = untrained(method), tiny_rows(12)
    logits = classifier(rows)
    rule = rule_for(name, logits)
    taken = exits_taken(logits, rule)
    if name == "half" and rule is not None:
        assert len(set(taken.tolist())) > 1
    for index, tokens in enumerate(rows):
        answer = classifier.answer(tokens[None], rule)
        assert answer.layers == classifier.exits[taken[index]]
        torch.testing.assert_close(answer.logits[0], logits[index, taken[index]], atol=1e-4, rtol=1e-3)


def test_layers_that_nobody_needs_are_not_run():
    classifier = untrained(METHODS[2])
    for layer in classifier.encoder.layers[1:]:
        layer.forward = None
    assert classifier.answer(tiny_rows(1), EntropyRule(9.0)).layers == 1


@pytest.mark.parametrize("exits", [(), (0, 4), (2, 1, 4), (4, 4), (1, 2), (1, 5)])
def test_exits_that_are_none(exits):
    with pytest.raises(ValueError, match=r"exits must be (ascending from|an integer of) at least 1"):
        SeparateExits(tiny_encoder(), CLASSES, exits)


@pytest.mark.parametrize("classes", [0, 1])
def test_classes_that_are_too_few(classes):
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 2"):
        SeparateExits(tiny_encoder(), classes, (4,))


@pytest.mark.parametrize("tokens", [[[1, VOCAB]], [[-1, VOCAB - 1]]])
def test_ids_outside_the_vocabulary_are_refused(tokens):
    message = rf"tokens must be in \[0, {VOCAB - 1}\], got {min(tokens[0])} to {max(tokens[0])}; encode with"
    with pytest.raises(ValueError, match=message):
        untrained(METHODS[0]).answer(torch.tensor(tokens))


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match="tokens must be one row, got 2"):
        untrained(METHODS[0]).answer(tiny_rows(2))


class TestPastAndFuture:
    @pytest.fixture
    def states(self):
        return torch.randn(5, LAYERS, SIZE, generator=torch.Generator().manual_seed(2)).tanh()

    def test_all_exits_at_once_are_the_exits_one_by_one(self, states):
        classifier = untrained(PAST_FUTURE)
        fast = classifier.read_all(states, classifier.guess_all(states))
        slow = [classifier.read(states[:, :count].unbind(1)) for count in range(1, LAYERS + 1)]
        torch.testing.assert_close(fast, torch.stack(slow, 1))

    def test_both_send_their_gradients_to_the_same_places(self, states):
        classifier = untrained(PAST_FUTURE)
        gradients = []
        for fast in (True, False):
            own = states.clone().requires_grad_()
            logits = (
                classifier.read_all(own, classifier.guess_all(own))[:, 2]
                if fast
                else classifier.read(own[:, :3].unbind(1))
            )
            classifier.zero_grad()
            logits.square().sum().backward()
            gradients.append((own.grad, classifier.vote_weight.grad.clone(), classifier.guess_weight.grad))
        for fast, slow in zip(*gradients, strict=True):
            torch.testing.assert_close(fast, slow)
        into = gradients[0][0].abs().sum((0, 2)) > 0
        assert into.tolist() == [False, False, True, False]  # its own layer's alone

    def test_the_last_exit_has_no_future(self, states):
        classifier = untrained(PAST_FUTURE)
        before = classifier.read(states.unbind(1))
        classifier.guess_weight.data.normal_()
        torch.testing.assert_close(classifier.read(states.unbind(1)), before)
        early = classifier.read(states[:, :1].unbind(1))
        classifier.guess_weight.data.normal_()
        assert (classifier.read(states[:, :1].unbind(1)) - early).abs().max() > 1e-3

    @pytest.mark.parametrize("asked", [(0, 1, 2, 3), (1, 3), (3,), (2, 2)])
    def test_votes_that_are_kept_are_those_that_are_cast_anew(self, states, asked, monkeypatch):
        """Whichever exits are asked; and every state that was come to casts its votes once."""
        classifier, reading, cast = untrained(PAST_FUTURE), untrained(PAST_FUTURE).reading(), []
        found, votes = [], reading.classifier.votes_of
        monkeypatch.setattr(
            reading.classifier,
            "votes_of",
            lambda given, first: cast.append((first, len(given))) or votes(given, first),
        )
        for index in range(LAYERS):
            reading.add(states[:, index])
            found += [reading.logits() for exit_ in asked if exit_ == index]
        wanted = [classifier.read(states[:, : exit_ + 1].unbind(1)) for exit_ in asked]
        torch.testing.assert_close(torch.stack(found), torch.stack(wanted))
        counted = [first + place for first, count in cast for place in range(count)]
        assert counted == list(range(asked[-1] + 1))

    def test_it_starts_from_weights_as_large_as_those_of_other_exits(self):
        """Of 1,024 weights a layer's deviation is off by 2 %; ten are allowed."""
        classifier = PastFuture(tiny_encoder(), CLASSES)
        usual = torch.nn.Linear(SIZE, SIZE).weight.std().item()
        assert classifier.guess_weight.std().item() == pytest.approx(usual, rel=0.2)
        assert classifier.vote_weight.std().item() == pytest.approx(usual, rel=0.2)
        assert first_deviation(768) == pytest.approx(0.02, rel=0.05)  # BERT's

    def test_imitation_by_its_definition(self, states):
        classifier = untrained(PAST_FUTURE)
        of_each = []
        for i in range(LAYERS - 1):
            guesses = classifier.guesses(states[:, i], i + 1)
            of_each.append((1 - torch.cosine_similarity(guesses, states[:, i + 1 :], dim=-1)).mean())
        found = imitation_loss(states, classifier.guess_all(states))
        torch.testing.assert_close(found, torch.stack(of_each).mean())

    def test_the_loss_is_exits_and_imitation_half_each(self):
        classifier, rows, labels = untrained(PAST_FUTURE), tiny_rows(4), torch.tensor([0, 1, 2, 1])
        states = torch.stack(classifier.states(rows), 1)
        each = [F.cross_entropy(logits, labels) for logits in classifier(rows).unbind(1)]
        exits = sum(i * loss for i, loss in enumerate(each, 1)) / sum(range(1, LAYERS + 1))
        imitation = imitation_loss(states, classifier.guess_all(states))
        expected = (exits + imitation) / 2
        torch.testing.assert_close(past_future_loss(classifier, rows, labels), expected)

    def test_perfect_imitation_costs_nothing(self, states):
        guessed = states[:, None].expand(-1, LAYERS, -1, -1)
        assert imitation_loss(states, guessed).abs() < 1e-5
        assert imitation_loss(states, -guessed) > 1.9

    def test_it_is_built_for_every_depth(self):
        assert PastFuture(tiny_encoder(1), 2)(tiny_rows(2)).shape == (2, 1, 2)
