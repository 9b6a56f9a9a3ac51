"""The models of the demo: six int8 models in ten versions, shaped like public 6-8B architectures.

Each takes 6.1-8.5 GiB, so an A10 holds any two of them and never three.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ccr.errors import UnknownModelError
from ccr.timing import LoadSource, ModelSpec, load_s, weights_gib

# Shapes from the models' public config.json; fp16 as published, int8 with embedding and head left in fp16.
LLAMA_2_7B = ModelSpec("Llama-2-7B fp16", 6_738_415_616, 32_000 * 4096, 32, 4096, 2, 512 * 1024)
MISTRAL_7B = ModelSpec("Mistral-7B fp16", 7_241_732_096, 32_000 * 4096, 32, 4096, 2, 128 * 1024)
LLAMA_3_8B = ModelSpec("Llama-3-8B fp16", 8_030_261_248, 128_256 * 4096, 32, 4096, 2, 128 * 1024)
QWEN_25_7B = ModelSpec("Qwen2.5-7B fp16", 7_615_616_512, 152_064 * 3584, 28, 3584, 2, 56 * 1024)
YI_15_6B = ModelSpec("Yi-1.5-6B fp16", 6_061_035_520, 64_000 * 4096, 32, 4096, 2, 64 * 1024)


def int8(model: ModelSpec) -> ModelSpec:
    """The same architecture with weight-only int8 linear layers."""
    return replace(model, architecture=model.architecture.replace("fp16", "int8"), weight_bytes=1)


_CATALOGUE: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "chat-7b@1": int8(MISTRAL_7B),
        "chat-7b@2": int8(MISTRAL_7B),
        "chat-7b@3": int8(MISTRAL_7B),
        "code-7b@1": int8(QWEN_25_7B),
        "code-7b@2": int8(QWEN_25_7B),
        "support-8b@1": int8(LLAMA_3_8B),
        "support-8b@2": int8(LLAMA_3_8B),
        "summary-7b@1": int8(LLAMA_2_7B),
        "extract-7b@1": int8(MISTRAL_7B),
        "translate-6b@1": int8(YI_15_6B),
    }
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a router's config says about a model.

    Args:
        gib: GPU memory of the weights.
        load_s: expected seconds of a cold start, as a client of the node sees it.
    """

    gib: float
    load_s: float


def catalogue(ids: Iterable[str] = ()) -> dict[str, ModelSpec]:
    """``{id: spec}`` of the models named, or of all of them."""
    wanted = tuple(ids) or tuple(_CATALOGUE)
    for model in wanted:
        if model not in _CATALOGUE:
            raise UnknownModelError(model, f"the catalogue has {', '.join(_CATALOGUE)}")
    return {model: _CATALOGUE[model] for model in wanted}


def model_facts(source: LoadSource, speed: float = 1.0) -> dict[str, ModelFacts]:
    """``{id: facts}`` of the whole catalogue, for the ``models:`` section of a router's config.

    Args:
        source: where the nodes load from.
        speed: how much faster than the wall clock the emulated nodes run.
    """
    return {
        model: ModelFacts(round(weights_gib(spec), 2), round(load_s(spec, source) / speed, 3))
        for model, spec in _CATALOGUE.items()
    }
