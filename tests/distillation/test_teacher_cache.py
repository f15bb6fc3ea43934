"""The cache: the same losses as with the teacher, which is asked once; other text and damage are noticed."""

import json
import os
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llmcourse.distillation import teacher_cache
from llmcourse.distillation.batches import Batches
from llmcourse.distillation.feature_loss import FeatureWeights
from llmcourse.distillation.losses import Response
from llmcourse.distillation.records import read_records
from llmcourse.distillation.stored_teacher import TopK
from llmcourse.distillation.teacher import Teacher
from tests.distillation.tiny_run import pattern, run, settings, student, teacher


def losses(folder) -> list[float]:
    return [line["loss"] for line in read_records(folder / "tiny.jsonl")]


@pytest.fixture
def filled(tmp_path):
    """A cache that a first student's training left."""
    run(tmp_path / "first", settings(top_k=8), cache=tmp_path / "cache")
    return tmp_path


def test_filling_and_reading_give_the_losses_of_the_teacher_itself(filled):
    run(filled / "live", settings(top_k=8))
    run(filled / "second", settings(top_k=8), cache=filled / "cache")
    assert losses(filled / "first") == losses(filled / "live") == losses(filled / "second")


def test_the_teacher_is_not_asked_for_what_is_kept(filled):
    with mock.patch.object(Teacher, "_ask", side_effect=AssertionError("asked")):
        run(filled / "second", settings(top_k=8), cache=filled / "cache")
        with pytest.raises(AssertionError, match="asked"):
            run(filled / "longer", settings(top_k=8, steps=7), cache=filled / "cache")


def test_another_student_reads_the_same(filled):
    with mock.patch.object(Teacher, "_ask", side_effect=AssertionError("asked")):
        run(filled / "other", settings(top_k=8), model=student(seed=3), cache=filled / "cache")
    assert losses(filled / "other") != losses(filled / "first")


def test_what_is_kept_takes_as_much_as_was_said(filled):
    files = list((filled / "cache").glob("*.safetensors"))
    assert len(files) == 6 and not list((filled / "cache").glob("*.new"))
    training = settings(top_k=8)
    told = Teacher(training, teacher())(next(Batches(training, [pattern()], student()).parts(0))).top_k
    note = json.loads((filled / "cache" / "cache.json").read_text())
    cache = teacher_cache.TeacherCache(filled / "cache", teacher_cache.CacheOf(**note))
    assert cache.of.bytes_per_token == told.bytes_per_token
    numbers = 4 * 12 * told.bytes_per_token
    assert numbers < files[0].stat().st_size < numbers + 500, "and a header"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"top_k": 4}, "k was 8, is 4"),
        ({"top_k": 8, "seed": 1}, "seed was 0, is 1"),
        ({"top_k": 8, "batch_size": 8}, "batch_size was 4, is 8"),
        ({"top_k": 8, "response": Response(temperature=2.0)}, "temperature was 1.0, is 2.0"),
    ],
)
def test_of_another_run(filled, changes, difference):
    with pytest.raises(ValueError, match=rf"cache is of another run \({difference}\); name another folder"):
        run(filled / "other", settings(**changes), cache=filled / "cache")


def test_of_another_teacher(filled):
    wrong = mock.patch("tests.distillation.tiny_run.teacher", student)
    with wrong, pytest.raises(ValueError, match=r"cache is of another run \(teacher was "):
        run(filled / "other", settings(top_k=8), cache=filled / "cache")


def test_of_other_text(filled):
    other = mock.patch("tests.distillation.tiny_run.pattern", lambda: pattern("other"))
    with other, pytest.raises(ValueError, match=r"000000-0\.1-0\.1\.safetensors is of other text"):
        run(filled / "other", settings(top_k=8), cache=filled / "cache")


def test_damaged(filled):
    file = filled / "cache" / "000002-0.1-0.1.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"000002-0\.1-0\.1\.safetensors is damaged .*the teacher is asked"):
        run(filled / "other", settings(top_k=8), cache=filled / "cache")
    file.unlink()
    run(filled / "other", settings(top_k=8), cache=filled / "cache")
    assert losses(filled / "other") == losses(filled / "first")


def test_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no cache of a teacher, and is not empty"):
        run(tmp_path / "run", settings(top_k=8), cache=tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_no_room(tmp_path):
    with mock.patch.object(teacher_cache.shutil, "disk_usage", return_value=mock.Mock(free=14_000)):
        with pytest.raises(OSError, match=r"would take 0\.0 GB more, and the disk has 0\.0"):
            run(tmp_path, settings(top_k=8), cache=tmp_path / "cache")  # 6 steps × 48 tokens × 50 bytes
        run(tmp_path, settings(top_k=7), cache=tmp_path / "other")  # 44 bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "top_k must be given where a cache is, got None"),
        ({"top_k": 8, "own_text": 0.5}, "own_text must be 0 where a cache is given, got 0.5"),
        ({"top_k": 8, "features": FeatureWeights()}, "features must be None where a cache is given"),
    ],
)
def test_what_cannot_be_kept(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, settings(**changes), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_it_is_the_teachers_own_top_k(filled):
    training = settings(top_k=8)
    part = next(Batches(training, [pattern()], student()).parts(0))
    kept = Teacher(training, teacher(), cache=filled / "cache")(part).top_k
    expected = TopK.of(teacher()(part.rows), 8)
    assert torch.equal(kept.ids, expected.ids) and torch.equal(kept.log_probs, expected.log_probs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": lambda ids: ids + 1000}, r"ids must be in \[0, "),
        ({"ids": lambda ids: ids.float()}, "ids must be int32"),
        ({"ids": lambda ids: ids[:1]}, "ids must be int32"),
        ({"log_probs": lambda log_probs: log_probs[..., :3]}, "log_probs must be float16"),
        ({"log_probs": lambda log_probs: log_probs * torch.nan}, "log_probs hold NaN"),
    ],
)
def test_numbers_that_no_teacher_said_are_damage(filled, change, said):
    path = sorted((filled / "cache").glob("*.safetensors"))[0]
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("ids", "log_probs")}
    tensors |= {name: changed(tensors[name]).contiguous() for name, changed in change.items()}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=f"is damaged .{said}.*remove it"):
        run(filled / "second", settings(top_k=8), cache=filled / "cache")


def test_a_file_is_no_folder_for_a_cache(tmp_path):
    (tmp_path / "file").write_text("words")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cache must be a folder, got .*file.*name another"):
            run(tmp_path / "out", settings(top_k=8), cache=place)
