"""Short texts that a server samples from a tiny model, by a program in which types are not checked.

python -m tests.speculative.served_texts '[["table", "plain", null], …]'    prints the cells of each case
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from unittest import mock

import numpy as np
import torch

from llmcourse.decoding import SamplingParams
from llmcourse.decoding.processors import apply
from llmcourse.decoding.sampling import pick, uniform
from llmcourse.serving import Request
from llmcourse.speculative import Draft, LookupDrafter, Speculation, speculation
from tests.serving.test_paged_runner import serve
from tests.speculative import test_loop_statistics
from tests.speculative.planted import BUGS
from tests.speculative.test_loop_statistics import PROMPT, VOCAB
from tests.speculative.tiny import tiny_decoder

NUM_TEXTS, LENGTH = 1_000, 3  # few enough tokens for several draws of each text
SETTINGS = test_loop_statistics.SETTINGS | {"hot": SamplingParams(temperature=2.5)}


class TableDrafter:
    """Draws each draft by the token before it, from a table that knows nothing of the target."""

    vocab_size = VOCAB
    logits = 4 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(5))

    def start(self, prompts, capacity):
        pass

    def draft(self, history, num_drafts, processors=(), generator=None):
        text, tokens, q = history.select([0]), [], []
        for _ in range(num_drafts[0]):
            logits = self.logits[text.tokens[0, int(text.lengths[0]) - 1]][None].clone()
            q.append(apply(processors, logits, text).softmax(-1))
            tokens.append(pick(q[-1], uniform(generator, 1)))
            text.append(tokens[-1])
        return Draft(torch.stack(tokens, 1), torch.tensor(num_drafts), torch.stack(q, 1))

    def accept(self, num_accepted):
        pass


def served(drafter: str, settings: str, first_seed: int, all_speculate: bool) -> list[int]:
    """The cells of texts, of which all or two in three are speculated on."""
    drafting = TableDrafter() if drafter == "table" else LookupDrafter(VOCAB)
    options = [Speculation(drafting, 2) if all_speculate else None]
    options += [Speculation(drafting, length) for length in (2, 3)]
    wanted = [
        Request(str(seed), PROMPT, LENGTH, SETTINGS[settings], seed, speculation=options[seed % 3])
        for seed in range(first_seed, first_seed + NUM_TEXTS)
    ]
    model = tiny_decoder(vocab_size=VOCAB)
    states = serve(model, wanted, policy="continuous", num_blocks=24, max_running=20)
    assert any(state.num_preemptions for state in states)
    assert NUM_TEXTS / 20 < sum(state.num_accepted for state in states) < 2 * NUM_TEXTS
    return (np.array([state.generated for state in states]) @ (VOCAB ** np.arange(LENGTH)[::-1])).tolist()


def main() -> None:
    torch.set_num_threads(1)
    for number, (drafter, settings, bug) in enumerate(json.loads(sys.argv[1])):
        planted = mock.patch.object(speculation, "verify_drafts", BUGS[bug]) if bug else nullcontext()
        with planted:
            print(json.dumps(served(drafter, settings, NUM_TEXTS * number, bool(bug))), flush=True)


if __name__ == "__main__":
    main()
