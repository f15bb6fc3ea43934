"""Features: taken out as they are, compared as written out by hand, learned through projections."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

from llmcourse.attention import attention_reference
from llmcourse.distillation import FeatureLoss, FeatureWeights, LayerMap, read_features
from llmcourse.distillation.features import attention_map, hidden_loss, relation_loss, value_relation
from tests.distillation.tiny import STUDENT, TEACHER, rows, tiny_config, tiny_student, tiny_teacher

ROOT = Path(__file__).parents[2]
MASK = torch.tensor([[True] * 9, [True] * 5 + [False] * 4, [True] + [False] * 8])
STUDENT_CONFIG, TEACHER_CONFIG = tiny_config(**STUDENT), tiny_config(**TEACHER)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestReading:
    def test_the_pass_is_the_models_own(self):
        model = tiny_teacher()
        last, features = read_features(model, rows(), [2, 4])
        assert torch.equal(last, model.hidden_states(rows())) and set(features) == {2, 4}
        x, context = model.begin(rows())
        for index, layer in enumerate(model.model.layers):
            before, x = x, layer(x, index, context)
            if index + 1 in features:
                found = features[index + 1]
                assert torch.equal(found.hidden, x)
                k, v = layer.self_attn.keys_values(layer.input_layernorm(before), context.rope)
                assert torch.equal(found.k, k) and torch.equal(found.v, v)

    def test_maps_are_what_attention_weighs_values_by(self):
        model = tiny_teacher(dtype=torch.float64)
        found = read_features(model, rows(), [3])[1][3]
        weights = attention_map(found.q, found.k).exp()
        mixed = weights @ found.v.repeat_interleave(2, dim=1)
        torch.testing.assert_close(mixed, attention_reference(found.q, found.k, found.v))

    def test_gradients_reach_what_lies_before(self):
        model = tiny_student()
        read_features(model, rows(), [1])[1][1].hidden.sum().backward()
        reached = [layer.mlp.up_proj.weight.grad is not None for layer in model.model.layers]
        assert reached == [True, False]

    @pytest.mark.parametrize("layer", [0, 5])
    def test_layers_that_are_not_there_are_refused(self, layer):
        with pytest.raises(ValueError, match=rf"layers must be in \[1, 4\], got {layer}; count them from 1"):
            read_features(tiny_teacher(), rows(), [layer])


class TestHiddenStates:
    S, T = random(0, 3, 9, 4), 3 * random(1, 3, 9, 4)

    def by_hand(self, distance: str) -> float:
        kept = [(s, t) for s, t in zip(self.S[MASK], self.T[MASK], strict=True)]
        squares = [sum((a - b) ** 2 for a, b in zip(s.tolist(), t.tolist(), strict=True)) for s, t in kept]
        if distance == "mean_square":
            return sum(squares) / 4 / len(kept)
        if distance == "relative_square":
            return sum(squares) / sum(t.square().sum().item() for _, t in kept)
        return sum(1 - (s @ t / (s.norm() * t.norm())).item() for s, t in kept) / len(kept)

    @pytest.mark.parametrize("distance", ["mean_square", "relative_square", "cosine"])
    def test_distances_are_their_sums(self, distance):
        found = hidden_loss(self.S, self.T, distance=distance, mask=MASK)
        assert found.item() == pytest.approx(self.by_hand(distance))
        assert hidden_loss(self.S, self.T, distance=distance).item() != pytest.approx(found.item(), rel=0.01)

    @pytest.mark.parametrize("distance", ["mean_square", "relative_square", "cosine"])
    def test_gradients_go_to_the_student_alone(self, distance):
        student, teacher = self.S.clone().requires_grad_(), self.T.clone().requires_grad_()
        assert gradcheck(lambda s: hidden_loss(s, self.T, distance=distance, mask=MASK), (student,))
        hidden_loss(student, teacher, distance=distance).backward()
        assert teacher.grad is None and student.grad.any()

    def test_layers_of_any_size_weigh_alike(self):
        one, ten = (hidden_loss(scale * self.S, scale * self.T) for scale in (1, 10))
        assert one.item() == pytest.approx(ten.item())
        assert hidden_loss(0 * self.S, self.T).item() == pytest.approx(1)
        assert hidden_loss(7 * self.T, self.T, distance="cosine").item() == pytest.approx(0)
        assert hidden_loss(0 * self.S, 0 * self.T).item() == 0

    def test_other_widths_and_distances_are_refused(self):
        with pytest.raises(
            ValueError, match="student's width must be the teacher's, 4, got 3; project it with Φ"
        ):
            hidden_loss(self.S[..., :3], self.T)
        with pytest.raises(ValueError, match=r"distance must be 'mean_square', .* got 'l1'"):
            hidden_loss(self.S, self.T, distance="l1")


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def relation_by_hand(q, k, row: int, head: int, place: int) -> list[float]:
    """Of q and k as (B, T, heads, D): what the token at a place looks back at."""
    dot = lambda past: sum(a * b for a, b in zip(q[row, place, head], k[row, past, head], strict=True))  # noqa: E731
    return softmax([dot(past).item() / math.sqrt(q.shape[-1]) for past in range(place + 1)])


class TestRelations:
    @pytest.mark.parametrize("heads", [None, 1, 3, 6])
    def test_value_relations_are_their_sums(self, heads):
        v = random(0, 2, 3, 5, 4)  # (B, Hkv, T, D): 12 numbers a token
        cut = v.transpose(1, 2).reshape(2, 5, heads or 3, -1)
        found = value_relation(v, heads).exp()
        for row in range(2):
            for head in range(heads or 3):
                for place in range(5):
                    wanted = relation_by_hand(cut, cut, row, head, place)
                    ahead = [0.0] * (4 - place)
                    assert found[row, head, place].tolist() == pytest.approx(wanted + ahead, abs=1e-12)

    @pytest.mark.parametrize("mask", [None, torch.tensor([[True, True, False], [True, False, False]])])
    def test_the_loss_is_its_sum(self, mask):
        q, k = random(0, 2, 2, 3, 4), random(1, 2, 2, 3, 4)
        teacher, student = attention_map(q, k), attention_map(k, q)
        found = []
        for row in range(2):
            for place in range(3):
                if mask is None or mask[row, place]:
                    for head in range(2):
                        p, q_ = (
                            each[row, head, place, : place + 1].exp().tolist() for each in (teacher, student)
                        )
                        found.append(sum(a * math.log(a / b) for a, b in zip(p, q_, strict=True)))
        assert relation_loss(student, teacher, mask=mask).item() == pytest.approx(sum(found) / len(found))

    def test_gradients_are_those_of_differences(self):
        """Through what lies ahead, too, which is −inf for both."""
        v, teacher = random(0, 1, 2, 4, 2).requires_grad_(), value_relation(random(1, 1, 2, 4, 2))
        assert gradcheck(lambda v: relation_loss(value_relation(v), teacher), (v,))

    def test_narrow_scores_are_widened_even_where_autocast_would_round_them(self):
        q, k = random(0, 1, 2, 8, 4).float(), random(1, 1, 2, 8, 4).float()
        with torch.autocast("cpu", torch.bfloat16):
            found = attention_map(q, k)
        assert (
            torch.equal(found, attention_map(q, k))
            and attention_map(q.bfloat16(), k.bfloat16()).dtype == q.dtype
        )

    def test_heads_that_do_not_fit_are_refused(self):
        v = random(0, 1, 3, 5, 4)
        with pytest.raises(
            ValueError, match="relation_heads must be a divisor of all values' width, 12, got 5"
        ):
            value_relation(v, 5)
        with pytest.raises(
            ValueError, match="student's heads must be the teacher's, 6, got 3; compare value rel"
        ):
            relation_loss(value_relation(v), value_relation(v, 6))


def features(dtype: torch.dtype = torch.float64, layers=((1, 2), (2, 4))):
    student, teacher = tiny_student(dtype=dtype), tiny_teacher(dtype=dtype)
    mine, its = zip(*layers, strict=True)
    return student, read_features(student, rows(), mine)[1], read_features(teacher, rows(), its)[1]


class TestTogether:
    MAP = LayerMap.uniform(2, 4)

    def test_all_that_is_compared_is_added_up_and_pairs_are_averaged(self):
        _, student, teacher = features()
        weights = FeatureWeights(0.5, 2.0, 3.0, distance="cosine", relation_heads=4)
        loss = FeatureLoss(STUDENT_CONFIG, TEACHER_CONFIG, self.MAP, weights).double()
        wanted = []
        for projection, (mine, its) in zip(loss.projections, self.MAP.pairs, strict=True):
            s, t = student[mine], teacher[its]
            hidden = hidden_loss(s.hidden @ projection.weight.T, t.hidden, distance="cosine", mask=MASK)
            maps = relation_loss(attention_map(s.q, s.k), attention_map(t.q, t.k), mask=MASK)
            values = relation_loss(value_relation(s.v, 4), value_relation(t.v, 4), mask=MASK)
            wanted.append(0.5 * hidden + 2 * maps + 3 * values)
        torch.testing.assert_close(loss(student, teacher, MASK), sum(wanted) / 2)
        assert len(loss.projections) == 2 and loss.projections[0].weight.shape == (32, 16)

    @pytest.mark.parametrize(
        "weights", [FeatureWeights(), FeatureWeights(0, 1), FeatureWeights(0, 0, 1)], ids=["h", "a", "v"]
    )
    def test_what_has_no_weight_is_neither_learned_nor_computed(self, weights):
        _, student, teacher = features()
        loss = FeatureLoss(STUDENT_CONFIG, TEACHER_CONFIG, self.MAP, weights).double()
        assert len(loss.projections) == 2 * (weights.hidden > 0)
        loss(student, teacher).backward()

    def test_the_student_and_its_projections_learn(self):
        """Sixty steps on one batch bring it closer by each kind; a projection alone would not do as much."""
        reached = {}
        for name, trains in (("both", True), ("projection", False)):
            student, teacher = tiny_student(), tiny_teacher()
            loss = FeatureLoss(STUDENT_CONFIG, TEACHER_CONFIG, self.MAP, FeatureWeights(1, 1, 1))
            torch.manual_seed(0)
            for projection in loss.projections:
                projection.reset_parameters()
            parameters = [*loss.parameters(), *(student.parameters() if trains else ())]
            optimizer = torch.optim.Adam(parameters, 0.01)
            wanted = read_features(teacher, rows(), self.MAP.teacher_layers)[1]
            losses = []
            for _ in range(60):
                value = loss(read_features(student, rows(), self.MAP.student_layers)[1], wanted)
                losses.append(value.item())
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            reached[name] = losses[-1] / losses[0]
        assert reached["both"] < 0.5 * reached["projection"], reached

    def test_the_teacher_gets_no_gradient(self):
        _, student, _ = features()
        teacher = tiny_teacher(dtype=torch.float64).requires_grad_()
        read = read_features(teacher, rows(), [2, 4])[1]
        weights = FeatureWeights(1, 1, 1)
        FeatureLoss(STUDENT_CONFIG, TEACHER_CONFIG, self.MAP, weights).double()(student, read).backward()
        assert all(weight.grad is None for weight in teacher.parameters())

    @pytest.mark.parametrize(
        ("weights", "student", "message"),
        [
            (
                FeatureWeights(project=False),
                {},
                "student's width must be the teacher's, 32, got 16; learn a Φ",
            ),
            (
                FeatureWeights(0, 1),
                {"num_heads": 2},
                "student's heads must be the teacher's, 4, got 2; compare",
            ),
            (
                FeatureWeights(0, 0, 1),
                {"num_kv_heads": 1},
                "student's key/value heads must be the teacher's, 2, got 1; give relation_heads",
            ),
            (
                FeatureWeights(0, 0, 1, relation_heads=16),
                {},
                "relation_heads must be a divisor of all values' width, 8, got 16",
            ),
            (FeatureWeights(), {"num_layers": 1}, r"student's layer must be in \[1, 1\], got 2; the pair"),
        ],
    )
    def test_shapes_that_do_not_fit_are_refused(self, weights, student, message):
        with pytest.raises(ValueError, match=message):
            FeatureLoss(tiny_config(**STUDENT | student), TEACHER_CONFIG, self.MAP, weights)

    def test_equal_widths_need_no_projection(self):
        config = tiny_config(**TEACHER)
        loss = FeatureLoss(config, config, LayerMap.last(4, 4), FeatureWeights(project=False))
        read = read_features(tiny_teacher(), rows(), [4])[1]
        assert loss(read, read).item() == 0 and not list(loss.parameters())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden": -1}, "hidden must be at least 0 and finite, got -1; 0 leaves it out"),
            ({"hidden": 0}, "weights of features must be above 0 somewhere, got 0"),
            ({"distance": "l1"}, "distance must be 'mean_square'"),
            ({"relation_heads": 0}, "relation_heads must be an integer of at least 1, got 0"),
        ],
    )
    def test_weights_that_are_none_are_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            FeatureWeights(**changes)


COMPILED = """
import torch
from llmcourse.distillation import FeatureLoss, FeatureWeights, LayerMap, read_features
from tests.distillation.tiny import rows, tiny_student, tiny_teacher

student, teacher, layer_map = tiny_student(), tiny_teacher(), LayerMap.uniform(2, 4)
loss = FeatureLoss(student.config, teacher.config, layer_map, FeatureWeights(1, 1, 1))


def step(tokens):
    wanted = read_features(teacher, tokens, layer_map.teacher_layers)[1]
    return loss(read_features(student, tokens, layer_map.student_layers)[1], wanted)


compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
compiled(rows()).backward()
gradient = student.model.embed_tokens.weight.grad.clone()
student.zero_grad()
step(rows()).backward()
assert torch.allclose(gradient, student.model.embed_tokens.weight.grad, atol=1e-6)
assert torch.allclose(compiled(rows()), step(rows()))
"""


def test_a_step_compiles_as_one_graph():
    """In a program of its own, where no test looks at shapes in between."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, cwd=ROOT, timeout=300)
