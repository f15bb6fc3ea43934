"""What a fine-tuning is shown."""

import torch

from llmcourse.early_exit.classifier.encoder import MASK
from llmcourse.training.classifier.fine_tune import Tuning, batches
from tests.early_exit.classifier.tiny import tiny_data


def test_fine_tuning_sees_every_text_once_an_epoch_and_hides_some_tokens():
    data = tiny_data(64, length=20)
    drawn = batches(data, Tuning(batch_size=16, hidden=0.25), torch.Generator().manual_seed(0))
    epoch = [next(drawn) for _ in range(4)]
    hidden = torch.cat([tokens for tokens, _ in epoch]) == MASK
    assert 0.15 < hidden.float().mean() < 0.35 and not hidden[:, 0].any()
    assert sum(int(labels.sum()) for _, labels in epoch) == 32
    plain = batches(data, Tuning(batch_size=16, hidden=0.0), torch.Generator().manual_seed(0))
    seen = {tuple(row.tolist()) for _ in range(4) for row in next(plain)[0]}
    assert seen == {tuple(row.tolist()) for row in data.tokens}
