"""An encoder of four narrow layers with random weights, and a task that it learns in seconds."""

import torch

from llmcourse.early_exit.classifier.encoded import Encoded
from llmcourse.early_exit.classifier.encoder import PAD, START, Encoder, encoder_shape

VOCAB, SIZE, LAYERS = 60, 32, 4


def tiny_encoder(num_layers: int = LAYERS, seed: int = 0, scale: float = 1.0) -> Encoder:
    """With `scale` above 1 the layers change the states a lot, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCAB, SIZE, generator=generator)
    encoder = Encoder(encoder_shape(VOCAB, SIZE, num_layers), table)
    encoder.init_weights(seed)
    for parameter in encoder.layers.parameters():
        if parameter.ndim == 2:
            parameter.data *= scale
    return encoder


def tiny_rows(count: int = 6, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Rows of different lengths, padded."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(4, VOCAB, (count, length), generator=generator)
    rows[:, 0] = START
    for index in range(count):
        rows[index, length - index % 4 :] = PAD
    return rows


def tiny_data(count: int, seed: int = 0, length: int = 9) -> Encoded:
    """Two classes: whether token 7 occurs; half of the rows each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(8, VOCAB, (count, length), generator=generator)
    rows[:, 0] = START
    labels = torch.arange(count) % 2
    places = torch.randint(1, length, (count,), generator=generator)
    chosen = labels == 1
    rows[chosen, places[chosen]] = 7
    return Encoded(rows, labels, torch.arange(count) // 4)
