"""What the distillation program asks on its command line, and the settings that come of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmcourse.arguments import Parser
from llmcourse.distillation.feature_loss import FeatureWeights
from llmcourse.distillation.features import DISTANCES
from llmcourse.distillation.layer_map import LayerMap
from llmcourse.distillation.losses import DIVERGENCES, Response
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.students import STARTS, student_recipe
from llmcourse.model import DecoderConfig
from llmcourse.training.options import adapted, add_mix_option, add_run_options, add_text_options
from llmcourse.training.recipes import Recipe

OBJECTIVES = ("scratch", "response", "features", "both", "own-text")
MAPS = ("uniform", "skip", "tail", "last")
QUICK = {"steps": 100, "batch_size": 8, "sequence_length": 128}  # two minutes on two cores


def layer_map(value: str) -> str | LayerMap:
    """A name of `MAPS`, or pairs as `1:3,2:6`."""
    if value in MAPS:
        return value
    try:
        return LayerMap([tuple(map(int, pair.split(":"))) for pair in value.split(",")])
    except (TypeError, ValueError) as error:
        kinds = f"expected one of {', '.join(MAPS)} or pairs such as 1:3,2:6, got {value!r}"
        raise argparse.ArgumentTypeError(f"{kinds} ({error})") from error


def parser(description: str) -> Parser:
    result = Parser(prog="python -m llmcourse.distillation", description=description)
    result.add_argument("--teacher", default="base", help="name, folder or hub repository")
    result.add_argument("--student", default="draft", help="draft, small, base, or a checkpoint's folder")
    result.add_argument(
        "--start", choices=STARTS, default="new", help="from new weights, or from the stored ones, gently"
    )
    result.add_argument("--objective", choices=OBJECTIVES, default="response", help="what is learned")
    result.add_argument("--out", type=Path, required=True, help="folder for the student and its records")
    _add_losses(result)
    _add_training(result)
    add_text_options(result)
    add_mix_option(result)
    result.set_defaults(held_out=None)
    return result


def _add_losses(result: Parser) -> None:
    response = result.add_argument_group("response")
    response.add_argument("--divergence", choices=DIVERGENCES, help="forward_kl; own-text: reverse_kl")
    response.add_argument("--temperature", type=float, default=1.0, help="above 0")
    response.add_argument("--beta", type=float, default=0.5, help="of jensen_shannon, 0 to 1")
    response.add_argument("--hard-weight", type=float, default=0.0, help="share of the text's tokens, 0 to 1")
    response.add_argument("--top-k", type=int, help="look at so many of the teacher's probabilities alone")
    response.add_argument("--cache", type=Path, help="folder that keeps them for further students")
    response.add_argument("--own-text", type=float, help="share of batches that the student writes; 0.5")
    features = result.add_argument_group("features")
    features.add_argument("--hidden", type=float, default=1.0, help="weight of hidden states")
    features.add_argument("--attention", type=float, default=0.0, help="weight of attention maps")
    features.add_argument("--values", type=float, default=0.0, help="weight of value relations")
    features.add_argument("--distance", choices=DISTANCES, default="relative_square", help="of hidden states")
    features.add_argument("--no-projection", action="store_true", help="compare states of one width as are")
    features.add_argument("--relation-heads", type=int, help="into which all values of a layer are cut")
    pairs = f"{', '.join(MAPS)}, or pairs student:teacher as 1:3,2:6"
    features.add_argument("--layer-map", type=layer_map, default="uniform", help=pairs)


def _add_training(result: Parser) -> None:
    add_run_options(result)
    training = result.add_argument_group("training")
    training.add_argument("--quick", action="store_true", help="two minutes on two cores: few, small steps")
    training.add_argument("--batch-size", type=int, help="rows a step, over all processes")
    training.add_argument("--length", type=int, help="tokens a row")
    training.add_argument("--accumulation", type=int, default=1, help="parts of a batch, to save memory")
    training.add_argument("--seed", type=int, help="of new weights and of the order of text")
    training.add_argument("--matrix-lr", type=float, help="Muon's rate; less where weights are stored")
    training.add_argument("--other-lr", type=float, help="AdamW's")


def recipe_of(options: argparse.Namespace, domains: Sequence[str]) -> Recipe:
    """The student's recipe, with what the command line changes in it.

    Raises:
        ValueError, FileNotFoundError: as `student_recipe`; a number out of its range; a mix of other domains.
    """
    recipe = student_recipe(options.student, options.start)
    asked = {
        "batch_size": options.batch_size,
        "sequence_length": options.length,
        "seed": options.seed,
        "matrix_lr": options.matrix_lr,
        "other_lr": options.other_lr,
    }
    changes = QUICK if options.quick else {}
    recipe = replace(recipe, **changes | {name: v for name, v in asked.items() if v is not None})
    recipe = adapted(recipe, options, domains)
    return replace(recipe, warmup=min(recipe.warmup, max(1, recipe.steps // 10)))


def distillation_of(options: argparse.Namespace, recipe: Recipe, teacher: DecoderConfig) -> Distillation:
    """All settings.

    Raises:
        ValueError: numbers out of their range, or options that the objective has no use for.
    """
    objective = options.objective
    features = _features(options) if objective in ("features", "both") else None
    own_text = (0.5 if options.own_text is None else options.own_text) if objective == "own-text" else 0.0
    if options.own_text is not None and objective != "own-text":
        raise ValueError(f"own_text must be left out for the objective {objective}; or take own-text")
    response = None
    if objective not in ("scratch", "features"):
        usual = "reverse_kl" if objective == "own-text" else "forward_kl"
        divergence = options.divergence or usual
        response = Response(divergence, options.temperature, options.beta, options.hard_weight)
    return Distillation(
        recipe,
        response,
        features,
        _map(options.layer_map, recipe.model, teacher) if features else None,
        top_k=options.top_k,
        own_text=own_text,
        accumulation=options.accumulation,
    )


def _features(options: argparse.Namespace) -> FeatureWeights:
    return FeatureWeights(
        options.hidden,
        options.attention,
        options.values,
        options.distance,
        not options.no_projection,
        options.relation_heads,
    )


def _map(chosen: str | LayerMap, student: DecoderConfig, teacher: DecoderConfig) -> LayerMap:
    if isinstance(chosen, LayerMap):
        return chosen
    return getattr(LayerMap, chosen)(student.num_layers, teacher.num_layers)
