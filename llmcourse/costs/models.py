"""Shapes of models that the course speaks of, as their configurations give them."""

from llmcourse.costs.shapes import ModelShapes

LLAMA_3_8B = ModelShapes(128_256, 4096, 14_336, 32, 32, 8, 128)
LLAMA_2_7B = ModelShapes(32_000, 4096, 11_008, 32, 32, 32, 128)
QWEN3_0_6B = ModelShapes(151_936, 1024, 3072, 28, 16, 8, 128, qk_norm=True, tie_word_embeddings=True)

# Models by name; the embedded ones are those of llmcourse/checkpoints.
MODELS = {
    "Llama-3-8B": LLAMA_3_8B,
    "Llama-2-7B": LLAMA_2_7B,
    "Qwen3-0.6B": QWEN3_0_6B,
    "base": ModelShapes(12_288, 320, 896, 6, 10, 2, 32, tie_word_embeddings=True),
    "small": ModelShapes(12_288, 192, 512, 4, 6, 2, 32, tie_word_embeddings=True),
    "draft": ModelShapes(12_288, 128, 384, 2, 4, 2, 32, tie_word_embeddings=True),
}
