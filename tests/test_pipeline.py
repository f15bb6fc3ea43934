"""The course's steps on a tiny model: they write what it writes, and limits and losses are those of each."""

from dataclasses import replace

import pytest
import torch

from llmcourse import pipeline
from llmcourse.costs import Precision, Step
from llmcourse.decoding import generate
from llmcourse.hardware import Ceilings
from llmcourse.pipeline import STAGES, Pipeline
from llmcourse.quantization.cache_error import cache_errors
from llmcourse.quantization.models import quantize
from llmcourse.quantization.quality import compare
from llmcourse.roofline import predict_step
from tests.distillation.tiny import VOCAB, tiny_student, tiny_teacher

MACHINE = Ceilings("a machine", None, 1e9, 2e9, {"fp32": 1e12}, {})
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8]]
NEW = 12
EXACT = STAGES[:6]


def streams() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {name: torch.randint(VOCAB, (60,), generator=draw) for name in ("prose", "code")}


def tiny_course() -> Pipeline:
    """A drafter that is the target itself, so that drafts stand."""
    settings = {"new_tokens": NEW, "texts": 3, "draft_length": 2, "scheme": "int4-g8", "length": 9}
    return Pipeline(tiny_teacher(), tiny_teacher(), PROMPTS, streams(), MACHINE, **settings)


@pytest.fixture
def course():
    return tiny_course()


@pytest.fixture(scope="module")
def whole_course():
    """One that has been run to its end, and what it found; for tests that leave both as they are."""
    made = tiny_course()
    return made, {stage.name: stage for stage in made.run()}


@pytest.fixture
def stages(whole_course):
    return whole_course[1]


def test_every_step_of_the_course_is_there_and_says_what_it_is(stages):
    assert tuple(stages) == STAGES
    for stage in stages.values():
        assert stage.tokens_per_s > 0 and stage.limit > 0 and stage.spread >= 0
        assert stage.share_of_limit == stage.tokens_per_s / stage.limit
        assert stage.name in str(stage) and "tok/s of" in str(stage)
    assert {stage.name: stage.texts for stage in stages.values() if stage.texts > 1} == {}, (
        "one slot of three/2"
    )


def test_what_loses_nothing_writes_the_text_of_the_model(stages):
    for name in EXACT:
        assert (stages[name].kept, stages[name].kl, stages[name].agreement) == (1.0, 0.0, 1.0), name


def test_a_step_that_writes_another_text_is_seen(course, monkeypatch):
    engine = pipeline.DecodeEngine.decode

    def wrong(self, count, **draws):
        found = engine(self, count, **draws)
        found[:, NEW // 2] = (found[:, NEW // 2] + 1) % VOCAB
        return found

    monkeypatch.setattr(pipeline.DecodeEngine, "decode", wrong)
    (stage,) = course.run(["decode engine"])
    assert stage.kept == 0.5


def test_limits_are_the_roofline_of_what_each_step_reads(course, stages):
    config, fp32 = course.target.config, Precision.uniform("fp32")
    context = 4 + NEW // 2

    def speed(step, precision=fp32):
        return 1 / predict_step(config, step, MACHINE, precision).time_s

    assert stages["decode engine"].limit == stages["KV cache"].limit == speed(Step.decode(1, context))
    anew = Step.prefill(1, context, cache=False, logit_positions=1)
    assert stages["every text anew"].limit == speed(anew)
    four = Precision("int4", "fp32", head="fp32", group_size=8)
    assert stages["low-bit weights"].limit == speed(Step.decode(1, context), four)
    eight = Precision("fp32", "fp32", cache="int8", cache_group_size=config.head_dim)
    assert stages["low-bit cache"].limit == speed(Step.decode(1, context), eight)


def test_drafts_of_the_target_itself_all_stand(stages):
    more = stages["speculation"].more
    assert more["acceptance"] == 1.0 and more["gamma"] == 2
    assert more["tokens_a_step"] == pytest.approx(3, rel=0.1)


def test_the_limit_of_speculation_counts_both_models(course, stages):
    target = replace(course, drafter=tiny_student())
    (stage,) = target.run(["speculation"])
    fp32, context = Precision.uniform("fp32"), 4 + NEW // 2
    drafting = 2 * predict_step(target.drafter.config, Step.decode(1, context), MACHINE, fp32).time_s
    step = Step.chunk(1, 3, context - 1)
    verifying = predict_step(target.target.config, step, MACHINE, fp32).time_s
    assert stage.limit == pytest.approx(stage.more["tokens_a_step"] / (drafting + verifying))
    assert stage.kept == 1.0 and stage.more["acceptance"] < 1


def test_what_is_lost_is_what_the_chapter_measures(course, stages):
    model = quantize(course.target, "int4-g8", progress=False)
    found = compare(course.target, model, streams(), length=9, max_windows=16)
    expected = sum(each.kl.mean for each in found) / 2
    assert stages["low-bit weights"].kl == pytest.approx(expected) and expected > 0
    assert stages["low-bit speculation"].kl == stages["low-bit weights"].kl
    assert stages["low-bit weights"].more["weight_bytes"] < 4 * course.target.num_parameters
    rows = [torch.stack([s[i * 9 : i * 9 + 9] for i in range(6)]) for s in streams().values()]
    lost = [cache_errors(course.target, each, 8).kl_divergence for each in rows]
    assert stages["low-bit cache"].kl == pytest.approx(sum(lost) / 2)
    assert 0 < stages["low-bit cache"].kl < stages["low-bit weights"].kl


def test_many_texts_are_written_at_once_in_fewer_slots(course):
    many = replace(course, texts=6)
    (stage,) = many.run(["continuous batching"])
    assert stage.texts == 3 and stage.kept == 1.0
    (alone,) = many.run(["decode engine"])
    assert alone.limit < stage.limit < 3.5 * alone.limit


def test_the_model_stays_as_it_is(whole_course):
    course, _ = whole_course
    expected = [
        each.tokens for each in generate(tiny_teacher(), PROMPTS, max_new_tokens=NEW, eos_token_ids=())
    ]
    assert course._own == expected
    untouched = tiny_teacher().state_dict()
    assert all(torch.equal(t, untouched[name]) for name, t in course.target.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": []}, "prompts must be at least one, got none"),
        ({"new_tokens": 1}, "new_tokens must be an integer of at least 2|new_tokens must be"),
        ({"texts": 0}, "texts must be"),
    ],
)
def test_numbers_out_of_range_are_refused(course, changes, says):
    with pytest.raises(ValueError, match=says):
        replace(course, **changes)


def test_a_stage_that_is_none_is_refused_before_anything_runs(course):
    with pytest.raises(ValueError, match=r"stage must be one of every text anew, .* got 'hope'"):
        next(course.run(["decode engine", "hope"]))
