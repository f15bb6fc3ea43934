"""Beam search on an embedded model against transformers on the same folder, in three domains."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmcourse import pretrained
from llmcourse.decoding.beam import beam_search
from llmcourse.prompts import one_hundred

NUM_BEAMS, NUM_TOKENS = 4, 12


@pytest.fixture
def one_thread():
    """Matrices this small are multiplied faster by one thread than by two that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_same_beams_as_transformers_on_100_prompts():
    model, tokenizer = pretrained.load("small")
    theirs = AutoModelForCausalLM.from_pretrained(
        pretrained.find_checkpoint("small"), dtype=torch.float32
    ).eval()
    openings = [tokenizer.encode(prompt) for prompt in one_hundred()]
    assert len(openings) == 100
    eos = model.config.eos_token_ids
    for prompt, token_ids in zip(one_hundred(), openings, strict=True):
        out = theirs.generate(
            torch.tensor([token_ids]),
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
            num_beams=NUM_BEAMS,
            num_return_sequences=NUM_BEAMS,
            do_sample=False,
            early_stopping=False,
            max_new_tokens=NUM_TOKENS,
            eos_token_id=list(eos),
            pad_token_id=eos[0],
            return_dict_in_generate=True,
            output_scores=True,
        )
        search = beam_search(
            model, token_ids, num_beams=NUM_BEAMS, max_new_tokens=NUM_TOKENS, num_return=NUM_BEAMS
        )
        lengths = (out.beam_indices >= 0).sum(-1).tolist()
        new_tokens = out.sequences[:, len(token_ids) :].tolist()
        expected = [tokens[:length] for tokens, length in zip(new_tokens, lengths, strict=True)]
        assert [h.tokens for h in search.hypotheses] == expected, prompt
        assert [h.score for h in search.hypotheses] == pytest.approx(
            out.sequences_scores.tolist(), abs=1e-4
        ), prompt
