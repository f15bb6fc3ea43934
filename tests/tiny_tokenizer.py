"""A byte-level BPE of 300 tokens in the embedded tokenizer's form, trained on a few lines at once."""

import functools

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|mask|>", "<|sep|>"]
TEXT = [
    "Once upon a time there was a little girl, and she was a good little girl all the time.",
    "def area(width, height):\n    return width * height\n",
    "《靜夜思》李白\n床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。明明明明明月月月月月。",
]


@functools.cache
def tiny_tokenizer_json(vocab_size: int = 300) -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer.to_str()
