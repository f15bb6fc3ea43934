"""Scores, how sure a difference is, and that the test side chooses nothing."""

from dataclasses import replace

import pytest
import torch

from llmcourse.early_exit.classifier import table
from llmcourse.early_exit.classifier.encoded import Encoded, encode, exit_logits
from llmcourse.early_exit.classifier.encoder import PAD, SEPARATOR, START
from llmcourse.early_exit.classifier.exits import Answer, ExitClassifier
from llmcourse.early_exit.classifier.methods import DEEBERT, FULL, METHODS, PABEE
from llmcourse.early_exit.classifier.table import Result, as_text, difference, evaluate, seconds
from llmcourse.early_exit.classifier.taken import MixedRule
from llmcourse.early_exit.classifier.tasks import SIDES, Example, Task
from llmcourse.early_exit.rules import PatienceRule
from llmcourse.tokenizer import Tokenizer
from tests.early_exit.classifier.tiny import tiny_data, tiny_encoder
from tests.tiny_tokenizer import tiny_tokenizer_json


def result(right, documents=None, method="full", task="t", layers=None, steps=9) -> Result:
    right = torch.as_tensor(right, dtype=torch.bool)
    documents = torch.arange(len(right)) if documents is None else documents
    layers = torch.full((len(right),), 12) if layers is None else layers
    return Result(task, method, None, 12, right, layers, documents, 12.0, steps)


def test_score_and_speed_up():
    found = result([1, 1, 1, 0], layers=torch.tensor([3, 3, 6, 12]))
    assert found.score == 75 and found.speed_up == 2


class TestDifference:
    def test_by_hand(self):
        first, second = result([1, 1, 0, 1]), result([1, 0, 0, 0])
        value, low, high = difference([(first, second)])
        half = (
            100 * 3.18245 * (1 / 3 / 4) ** 0.5
        )  # t of three degrees; gains of 0, 1, 0, 1 have variance 1 / 3
        assert value == 50 and low == pytest.approx(50 - half, abs=1e-3) and high == 100
        assert difference([(first, first)]) == (0, 0, 0)

    def test_the_level(self):
        pair = result([1, 1, 0, 1] * 9), result([1, 0, 0, 0] * 9)
        _, low, high = difference([pair], level=0.5)
        assert (high - low) / 2 == pytest.approx(100 * 0.681564 * (36 / 35 / 4 / 36) ** 0.5, rel=1e-5)
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
            difference([pair], level=95)

    def test_one_document_says_nothing(self):
        """And what is not known of one task is not known of the mean."""
        one = torch.zeros(4, dtype=torch.long)
        pair = result([1, 1, 0, 1], one), result([1, 0, 0, 0], one)
        assert difference([pair]) == (50, -100, 100)
        many = result([1, 0] * 40, task="u"), result([0, 0] * 40, task="u")
        assert difference([pair, many]) == (50, -100, 100)

    def test_the_macro_average_is_the_mean_over_tasks(self):
        better = (result([1] * 4), result([0] * 4))
        same = (result([1] * 400, task="u"), result([1] * 400, task="u"))
        assert difference([better, same]) == (50, 50, 50)

    def misses(self, by_document: bool) -> int:
        """Of 200 intervals, how many leave out the true difference, 0. Eight examples of each of 40 documents
        are right or wrong together."""
        generator, missed = torch.Generator().manual_seed(0), 0
        documents = torch.arange(40).repeat_interleave(8)
        for _ in range(200):
            pair = []
            for _ in range(2):
                right = (torch.rand(40, generator=generator) < 0.8).repeat_interleave(8)
                pair.append(result(right, documents if by_document else None))
            _, low, high = difference([tuple(pair)])
            missed += not low <= 0 <= high
        return missed

    def test_it_holds_the_truth_as_often_as_it_says(self):
        """Of 200 intervals at 95 %, 10 are expected to miss; more than 26 would be chance once in 10^5."""
        assert self.misses(by_document=True) <= 26

    def test_drawing_single_examples_would_be_too_sure(self):
        """The negative control: the same data, the documents ignored."""
        assert self.misses(by_document=False) > 60

    def test_a_real_difference_is_found(self):
        draw = torch.rand(1000, generator=torch.Generator().manual_seed(0))
        value, low, _ = difference([(result(draw < 0.9), result(draw < 0.8))])
        assert 7 < value < 13 and low > 5

    def test_what_is_refused(self):
        with pytest.raises(ValueError, match="pairs must be at least one"):
            difference([])
        with pytest.raises(ValueError, match="pairs must be of one task each"):
            difference([(result([1]), result([1], task="u"))])
        with pytest.raises(ValueError, match="on the same documents"):
            difference([(result([1, 1]), result([1, 1], torch.tensor([0, 0])))])


@pytest.fixture(scope="module")
def classifiers():
    torch.manual_seed(0)
    return {m.name: m.build(tiny_encoder(scale=6), 2).eval() for m in METHODS}


def test_the_test_side_chooses_nothing(classifiers):
    classifier, validation = classifiers["deebert"], tiny_data(100)
    found = [
        evaluate("t", DEEBERT, classifier, 4, validation, tiny_data(40, seed), steps=9) for seed in (1, 2)
    ]
    assert found[0].rule == found[1].rule and found[0].rule is not None
    assert not torch.equal(found[0].layers, found[1].layers)
    assert abs(found[0].validation_layers - 2) < 0.2
    other = evaluate("t", DEEBERT, classifier, 4, tiny_data(100, 5), tiny_data(40, 1), steps=9)
    assert other.rule != found[0].rule  # the validation side does


def test_scores_are_those_of_the_exits_taken(classifiers):
    classifier, data = classifiers["deebert"], tiny_data(16)
    found = evaluate("t", DEEBERT, classifier, 4, data, data, steps=9)
    for index, tokens in enumerate(data.texts()):
        answer = classifier.answer(tokens, found.rule)
        assert answer.layers == found.layers[index]
        assert (answer.logits.argmax() == data.labels[index]) == found.right[index]


def test_a_method_without_rules_runs_everything(classifiers):
    found = evaluate("t", FULL, classifiers["full"], 4, tiny_data(20), tiny_data(20), steps=9)
    assert found.rule is None and found.speed_up == 1


def test_rows_of_the_table(classifiers):
    found = [
        evaluate(task, method, classifiers[method.name], 4, tiny_data(40), tiny_data(40), steps=9)
        for task in ("a", "b")
        for method in METHODS
    ]
    times = {"a": {method.name: 1.0 / (1 + index) for index, method in enumerate(METHODS)}}
    *lines, empty, note = as_text(found, times, METHODS, {"b": 61.26}).splitlines()
    assert len(lines) == 3 + len(METHODS) and not empty
    assert len({line.count("|") for line in lines[1:]}) == 1
    assert lines[-1] == "| shared words, one threshold | – | – | – | 61.3 | – | – | – |"
    assert "a 9, b 9" in note and "sampling of test documents only" in note
    assert "| 2.00× | 2.00× |" in lines[3] and lines[3].startswith("| half the layers |")
    assert f"{found[0].score:.1f} | 1.00× | 1.00×" in lines[2] and "| 1.00× | – |" in lines[2]


def test_methods_that_were_trained_longer_than_others_are_not_compared():
    found = [result([1, 0], method=m.name, steps=9 + (m.name == "pabee")) for m in METHODS]
    with pytest.raises(ValueError, match=r"steps of all methods on t must be the same, got .*'pabee': 10"):
        as_text(found, {}, METHODS)
    other = [result([1, 0], method=m.name, task="u", steps=4) for m in METHODS]
    same = [replace(one, steps=9) for one in found]
    assert "t 9, u 4" in as_text([*same, *other], {}, METHODS)  # tasks may differ


class Sleeper(ExitClassifier):
    """A classifier that takes as long as it is told."""

    def __init__(self, clock, time_s):
        torch.nn.Module.__init__(self)
        self.clock, self.time_s = clock, time_s

    def answer(self, tokens, rule):
        self.clock[0] += self.time_s * tokens.shape[1]
        return Answer(torch.zeros(1, 2), 1)


def test_seconds_are_means_over_texts(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(table.time, "perf_counter", lambda: clock[0])
    texts = [torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)]
    found = seconds({"slow": (Sleeper(clock, 2.0), None), "fast": (Sleeper(clock, 0.5), None)}, texts)
    assert found == {"slow": 6.0, "fast": 1.5}
    with pytest.raises(ValueError, match="texts must be at least one"):
        seconds({}, [])
    with pytest.raises(ValueError, match="repeats must be an integer of at least 1"):
        seconds({}, texts, repeats=0)


def test_a_mixture_is_asked_text_by_text(classifiers, monkeypatch):
    asked = []
    monkeypatch.setattr(table, "_seconds", lambda classifier, tokens, rule: asked.append(rule) or 1.0)
    mixed = MixedRule(PatienceRule(1), PatienceRule(2), 0.5)
    seconds({"pabee": (classifiers["pabee"], mixed)}, [torch.zeros(1, 2, dtype=torch.long)] * 20, repeats=1)
    assert asked == 2 * [mixed.of(number) for number in range(20)]


def test_patience_is_mixed_to_meet_the_budget(monkeypatch):
    """With a budget of 3.1 of 4 layers, that patience alone does not meet."""
    monkeypatch.setattr(table, "SPEED_UP", 4 / 3.1)
    torch.manual_seed(0)
    classifier, data = PABEE.build(tiny_encoder(scale=6), 2).eval(), tiny_data(100)
    found = evaluate("t", PABEE, classifier, 4, data, data, steps=9)
    assert isinstance(found.rule, MixedRule) and abs(found.validation_layers - 3.1) <= 0.01
    assert found.layers.double().mean().item() == pytest.approx(found.validation_layers)


def test_seconds_of_a_real_classifier(classifiers):
    found = seconds({"full": (classifiers["full"], None)}, list(tiny_data(2).texts()), repeats=1)
    assert found["full"] > 0


class TestEncoded:
    @pytest.fixture
    def task(self):
        sides = {
            side: tuple(
                Example(f"{side} {n // 2}", (f"{side} once upon {n}", f"{side} a time {n}"), n % 2)
                for n in range(6)
            )
            for side in SIDES
        }
        return Task("t", ("no", "yes"), **sides)

    def test_rows_labels_and_documents(self, task, tmp_path):
        (tmp_path / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
        tokenizer = Tokenizer(tmp_path)
        found = encode(task, "test", tokenizer, 60)
        assert found.tokens.shape == (6, 60) and found.labels.tolist() == [0, 1] * 3
        assert found.documents.tolist() == [0, 0, 1, 1, 2, 2]
        for example, tokens in zip(task.test, found.texts(), strict=True):
            ids = tokens[0].tolist()
            middle = ids.index(SEPARATOR)
            assert ids[0] == START and PAD not in ids
            assert tokenizer.decode(ids[1:middle]) == example.texts[0]
            assert tokenizer.decode(ids[middle + 1 :]) == example.texts[1]

    def test_logits_of_many_batches_are_those_of_one(self, classifiers):
        data = tiny_data(150)
        found = exit_logits(classifiers["pabee"], data)
        torch.testing.assert_close(found, classifiers["pabee"](data.tokens).detach(), atol=1e-5, rtol=1e-4)
        assert len(data) == 150 and isinstance(data.to(torch.device("cpu")), Encoded)


def test_results_are_frozen():
    with pytest.raises(AttributeError):
        result([1]).task = "u"
    assert replace(result([1]), task="u").task == "u"
