"""Preparation and its reuse, and a whole family from text to checkpoints."""

import json
import os
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from llmcourse.pretrained import load
from llmcourse.training import family
from llmcourse.training.evaluate import HeldOut, evaluate
from llmcourse.training.family import Corpus, prepare, train_family, work_folder
from llmcourse.training.text import Source, split
from llmcourse.training.tokenizer import load_tokenizer
from tests.training.tiny import tiny_recipe, write_text

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("tiny_family")


@pytest.fixture
def folder(tmp_path):
    write_text(tmp_path)
    return tmp_path


def corpus(folder, held_out: float = 0.2, names=("poems", "code")) -> Corpus:
    paths = {"poems": ("blocks", "poems.txt"), "code": ("python", "code")}
    return Corpus([Source(name, paths[name][0], str(folder / paths[name][1])) for name in names], held_out)


class TestCorpus:
    def test_two_domains_of_one_name(self, folder):
        with pytest.raises(ValueError, match="each domain needs a name of its own, got code, code"):
            corpus(folder, names=("code", "code"))

    def test_none(self):
        with pytest.raises(ValueError, match="no text given; use --text, --blocks or --python"):
            Corpus([], 0.01)

    @pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
    def test_held_out_is_checked_before_anything_is_read(self, folder, share):
        with pytest.raises(ValueError, match=r"held_out must be in \(0, 1\), got"):
            corpus(folder, share)


class TestPrepare:
    def test_tokens_are_those_of_the_documents(self, folder):
        counts = prepare(corpus(folder), folder / "work")
        tokenizer = load_tokenizer(folder / "work" / "tokenizer.json")
        assert list(counts) == ["poems", "code"] and tokenizer.get_vocab_size() == 300
        for source in corpus(folder).sources:
            train, held_out = split(source.documents(), 0.2)
            for side, documents in (("train", train), ("held_out", held_out)):
                tokens = np.load(folder / "work" / f"{source.name}-{side}.npy")
                rows = np.split(tokens, np.flatnonzero(tokens == 0) + 1)[:-1]
                assert [tokenizer.decode(row[:-1].tolist()) for row in rows] == documents
            size = len(np.load(folder / "work" / f"{source.name}-train.npy"))
            assert counts[source.name] == {
                "train_documents": len(train),
                "train_tokens": size,
                "held_out_documents": len(held_out),
                "held_out_chars": sum(map(len, held_out)),
            }

    def test_the_tokenizer_sees_training_documents_alone(self, folder):
        seen = []
        original = family.train_tokenizer

        def spy(documents, **options):
            seen.extend(documents)
            return original(iter(seen), **options)

        with mock.patch.object(family, "train_tokenizer", spy):
            prepare(corpus(folder), folder / "work")
        train = [d for source in corpus(folder).sources for d in split(source.documents(), 0.2)[0]]
        assert sorted(seen) == sorted(train)

    def test_is_done_once(self, folder):
        counts = prepare(corpus(folder), folder / "work")
        with mock.patch.object(Source, "documents", side_effect=AssertionError("read again")):
            assert prepare(corpus(folder), folder / "work") == counts

    def test_says_what_is_slow(self, folder, capsys):
        prepare(corpus(folder), folder / "work")
        output, errors = capsys.readouterr()
        steps = [line for line in output.splitlines() if line]
        assert steps == ["reading poems", "reading code", "training the tokenizer"]
        assert "40/40" in errors, "a bar over the files"

    def test_the_domain_whose_split_fails_is_named(self, folder):
        (folder / "poems.txt").write_text("only one", encoding="utf-8")
        with pytest.raises(ValueError, match="the domain 'poems': the split leaves"):
            prepare(corpus(folder), folder / "work")


class TestReuse:
    def refused(self, other: Corpus, work, message: str) -> None:
        before = {path: path.read_bytes() for path in work.iterdir()}
        with pytest.raises(ValueError) as caught:
            prepare(other, work)
        assert f"{work} was made from other sources ({message}); give the same" in str(caught.value)
        assert {path: path.read_bytes() for path in work.iterdir()} == before

    def test_other_sources_are_refused(self, folder):
        work = folder / "work"
        prepare(corpus(folder), work)
        self.refused(corpus(folder, held_out=0.3), work, "held_out was 0.2")
        self.refused(corpus(folder, names=("code",)), work, "they were blocks poems, python code")
        self.refused(corpus(folder, names=("code", "poems")), work, "they were blocks poems, python code")
        os.utime(folder / "poems.txt", (0, 0))
        prepare(corpus(folder), work)
        with open(folder / "poems.txt", "a", encoding="utf-8") as file:
            file.write("\n\none more")
        self.refused(corpus(folder), work, "other text for poems")

    def test_what_an_interrupted_preparation_left_counts_too(self, folder):
        """A tokenizer of other text would otherwise be taken over."""
        work = folder / "work"
        stopped = mock.patch.object(family, "encode_documents", side_effect=KeyboardInterrupt)
        with stopped, pytest.raises(KeyboardInterrupt):
            prepare(corpus(folder), work)
        assert (work / "tokenizer.json").is_file() and not (work / "corpus.json").exists()
        self.refused(corpus(folder, held_out=0.3), work, "held_out was 0.2")
        with mock.patch.object(family, "train_tokenizer", side_effect=AssertionError("trained again")):
            counts = prepare(corpus(folder), work)
        assert counts == prepare(corpus(folder), folder / "new")

    @pytest.mark.parametrize("name", ["sources.json", "corpus.json", "code-train.npy", "code-held_out.npy"])
    def test_what_is_damaged_is_named(self, folder, name):
        work, device = folder / "work", torch.device("cpu")
        prepare(corpus(folder), work)
        (work / name).write_bytes(b"x")
        with pytest.raises(ValueError) as caught:
            prepare(corpus(folder), work)
            family.training_domains(corpus(folder), work, device)
            family.held_out_ids("code", work)
        assert str(caught.value) == f"{work / name} is damaged; remove the folder {work} and start again"

    def test_a_folder_that_does_not_say(self, folder):
        prepare(corpus(folder), folder / "work")
        (folder / "work" / "sources.json").unlink()
        with pytest.raises(ValueError, match="does not say from what it was made; remove it"):
            prepare(corpus(folder), folder / "work")


class TestWorkFolder:
    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "taken").write_text("", encoding="utf-8")
        with pytest.raises(OSError, match=r"out must be a folder that can be written, got '.*taken' \("):
            work_folder(tmp_path / "taken")

    @pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_without_permission(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(OSError, match="Permission denied"):
            work_folder(tmp_path)
        tmp_path.chmod(0o700)

    def test_a_full_disk_shows_at_once(self, tmp_path):
        error = OSError(28, "No space left on device")
        full = mock.patch.object(family.tempfile, "TemporaryFile", side_effect=error)
        with full, pytest.raises(OSError, match=r"got '.*' \(No space left on device\); choose another"):
            work_folder(tmp_path)


class TestTrainFamily:
    RECIPES = (tiny_recipe(), tiny_recipe(name="other", steps=3, seed=1))

    def test_from_text_to_checkpoints(self, folder, capsys):
        out = folder / "out"
        assert train_family(corpus(folder), self.RECIPES, out, CPU)
        printed = capsys.readouterr().out
        counts = json.loads((out / ".training" / "corpus.json").read_text(encoding="utf-8"))
        for recipe in self.RECIPES:
            model, tokenizer = load(out / recipe.name)
            trained = torch.load(out / ".training" / f"{recipe.name}.pt", weights_only=True)["model"]
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, trained[name].bfloat16().float()), name
            assert tokenizer.vocab_size == 300 and 0 not in tokenizer.encode("x = 1")
            prompt = AutoTokenizer.from_pretrained(out / recipe.name, local_files_only=True)("x = 1")
            assert prompt["input_ids"] == [0, *tokenizer.encode("x = 1")]
            card = (out / recipe.name / "README.md").read_text(encoding="utf-8")
            for name in ("poems", "code"):
                tokens = torch.from_numpy(
                    np.load(out / ".training" / f"{name}-held_out.npy").astype(np.int32)
                )
                held_out = HeldOut(name, tokens, counts[name]["held_out_chars"])
                loss = evaluate(model, held_out, length=32)
                assert f" | {loss.nats_per_token:.3f} | {loss.bits_per_char:.3f} |" in card
                assert f"{recipe.name} {name}: {loss.nats_per_token:.3f} nats per token" in printed

    def test_stopped_by_the_time_limit_and_started_again(self, folder):
        def start(limit_s=float("inf")):
            return train_family(corpus(folder), self.RECIPES, folder / "out", CPU, limit_s)

        assert [start(-1.0) for _ in range(6)] == [False] * 6
        assert not (folder / "out" / "tiny").exists()
        assert start() is True
        whole = folder / "whole"
        assert train_family(corpus(folder), self.RECIPES, whole, CPU)
        for name in ("tiny", "other"):
            weights = [(path / name / "model.safetensors").read_bytes() for path in (folder / "out", whole)]
            assert weights[0] == weights[1]

    def test_seconds_of_all_starts_are_added(self, folder):
        seconds = []
        for _ in range(3):
            train_family(corpus(folder), self.RECIPES[:1], folder / "out", CPU, -1.0)
            seconds.append(float((folder / "out" / ".training" / "tiny.seconds").read_text()))
        family._add_seconds(folder / "out" / ".training" / "tiny.seconds", 100.0)
        assert seconds == sorted(seconds)
        assert float((folder / "out" / ".training" / "tiny.seconds").read_text()) >= 100 + seconds[-1]

    def test_what_stands_in_the_way_is_found_before_training(self, folder):
        (folder / "out" / "other").mkdir(parents=True)
        (folder / "out" / "other" / "notes.txt").write_text("mine", encoding="utf-8")
        unread = mock.patch.object(Source, "documents", side_effect=AssertionError("too late"))
        with unread, pytest.raises(FileExistsError, match="other is no checkpoint, and would be replaced"):
            train_family(corpus(folder), self.RECIPES, folder / "out", CPU)
