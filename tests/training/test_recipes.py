"""Recipes, the optimizers that they give, and the course of the learning rates."""

import math

import pytest
import torch

from llmcourse.model import Decoder
from llmcourse.training.muon import BatchedMuon
from llmcourse.training.optimizer import build_optimizers, schedule, set_rates
from llmcourse.training.recipes import FAMILY, MIX
from tests.training.tiny import tiny_config, tiny_recipe


class TestRecipe:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"batch_size": -4}, "batch_size must be at least 1, got -4"),
            ({"sequence_length": 0}, "sequence_length must be at least 1, got 0"),
            ({"sequence_length": 33}, "sequence_length must be at most the model's context, 32, got 33"),
            ({"matrix_lr": 0.0}, "matrix_lr must be above 0 and finite, got 0.0"),
            ({"other_lr": math.inf}, "other_lr must be above 0 and finite, got inf"),
            ({"weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
            ({"warmup": -1}, "warmup must be at least 0 and finite, got -1"),
            ({"mix": {}}, "mix must name at least one domain"),
            ({"mix": {"a": 1.0, "b": 0.0}}, "the share of b must be above 0 and finite, got 0.0"),
            ({"mix": {"a": math.nan}}, "the share of a must be above 0 and finite, got nan"),
            ({"mix": {"a": math.inf}}, "the share of a must be above 0 and finite, got inf"),
        ],
    )
    def test_refused(self, changes, message):
        with pytest.raises(ValueError) as caught:
            tiny_recipe(**changes)
        assert message in str(caught.value)

    def test_a_domain_that_the_mix_does_not_name_gets_the_mean(self):
        recipe = tiny_recipe(mix={"a": 3.0, "b": 1.0})
        assert [recipe.weight(name) for name in "abc"] == [3.0, 1.0, 2.0]

    def test_tokens_are_counted(self):
        assert tiny_recipe(steps=5, batch_size=3, sequence_length=7).tokens == 105

    def test_the_family_shares_what_makes_it_one(self):
        assert list(FAMILY) == ["draft", "small", "base"]
        assert len({(r.model.vocab_size, r.model.max_position_embeddings) for r in FAMILY.values()}) == 1
        assert all(r.mix == MIX and r.model.tie_word_embeddings for r in FAMILY.values())
        assert FAMILY["draft"].mix is not FAMILY["base"].mix


class TestOptimizers:
    @pytest.mark.parametrize("tied", [True, False])
    def test_muon_has_the_matrices_inside_the_layers_alone(self, tied):
        model = Decoder(tiny_config(tie_word_embeddings=tied, qk_norm=True, attention_bias=True))
        muon, adamw = build_optimizers(model, tiny_recipe())
        names = {parameter: name for name, parameter in model.named_parameters()}
        inner, outer = ({names[p] for p in o.param_groups[0]["params"]} for o in (muon, adamw))
        assert type(muon) is BatchedMuon and type(adamw) is torch.optim.AdamW
        projections = {f"self_attn.{n}_proj.weight" for n in "qkvo"}
        projections |= {f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
        assert inner == {f"model.layers.0.{name}" for name in projections}
        assert inner.isdisjoint(outer) and inner | outer == set(names.values()), "each parameter once"
        assert ("lm_head.weight" in outer) is not tied

    def test_norms_and_embeddings_do_not_decay(self):
        muon, adamw = build_optimizers(Decoder(tiny_config()), tiny_recipe(weight_decay=0.3))
        assert (muon.param_groups[0]["weight_decay"], adamw.param_groups[0]["weight_decay"]) == (0.3, 0.0)

    def test_an_update_has_the_size_that_adamw_would_give(self):
        """Liu et al. 2025, section 2.2: root mean square of 0.2 times the rate, whatever the shape."""
        model, recipe = Decoder(tiny_config()), tiny_recipe(matrix_lr=0.01, weight_decay=0.0)
        muon, _ = build_optimizers(model, recipe)
        generator = torch.Generator().manual_seed(0)
        for parameter in muon.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            before = parameter.detach().clone()
            muon.step()
            size = (parameter.detach() - before).square().mean().sqrt().item()
            parameter.grad = None
            assert 0.6 < size / (0.2 * 0.01) < 1.4


class TestSchedule:
    def test_linear_up_then_linear_to_zero(self):
        recipe = tiny_recipe(steps=10, warmup=4)
        expected = [0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
        assert [schedule(step, recipe) for step in range(10)] == pytest.approx(expected)

    @pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (5, 0), (3, 3), (3, 8)])
    def test_short_runs(self, steps, warmup):
        rates = [schedule(step, tiny_recipe(steps=steps, warmup=warmup)) for step in range(steps)]
        assert all(0 < rate <= 1 for rate in rates)

    def test_each_optimizer_gets_its_own_peak(self):
        recipe = tiny_recipe(steps=10, warmup=4, matrix_lr=0.02, other_lr=0.003)
        optimizers = build_optimizers(Decoder(recipe.model), recipe)
        set_rates(optimizers, 1, recipe)
        assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([0.01, 0.0015])
