"""Shapes of public models, from their ``config.json``: what a router's config may name, and emulated nodes serve."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ccr.timing import ModelSpec

LLAMA_2_7B = ModelSpec("Llama-2-7B fp16", 6_738_415_616, 32_000 * 4096, 32, 4096, 2, 512 * 1024)
MISTRAL_7B = ModelSpec("Mistral-7B fp16", 7_241_732_096, 32_000 * 4096, 32, 4096, 2, 128 * 1024)
LLAMA_3_8B = ModelSpec("Llama-3-8B fp16", 8_030_261_248, 128_256 * 4096, 32, 4096, 2, 128 * 1024)
QWEN_25_7B = ModelSpec("Qwen2.5-7B fp16", 7_615_616_512, 152_064 * 3584, 28, 3584, 2, 56 * 1024)
YI_15_6B = ModelSpec("Yi-1.5-6B fp16", 6_061_035_520, 64_000 * 4096, 32, 4096, 2, 64 * 1024)

#: Name, as a config writes it -> shape, fp16 as published.
SHAPES: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "llama-2-7b": LLAMA_2_7B,
        "mistral-7b": MISTRAL_7B,
        "llama-3-8b": LLAMA_3_8B,
        "qwen2.5-7b": QWEN_25_7B,
        "yi-1.5-6b": YI_15_6B,
    }
)


def int8(model: ModelSpec) -> ModelSpec:
    """The same architecture with weight-only int8 linear layers; embedding and head stay fp16."""
    return replace(model, architecture=model.architecture.replace("fp16", "int8"), weight_bytes=1)
