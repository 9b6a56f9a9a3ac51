"""The models of the demo: six int8 models in ten versions, shaped like public 6-8B architectures.

Each takes 6.1-8.5 GiB, so an A10 holds any two of them and never three.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ccr.errors import UnknownModelError
from ccr.shapes import SHAPES, int8
from ccr.timing import LoadSource, ModelSpec, load_s, weights_gib

#: Model id -> whose shape it has; all are int8, with embedding and head left in fp16.
_LIKE: Mapping[str, str] = MappingProxyType(
    {
        "chat-7b@1": "mistral-7b",
        "chat-7b@2": "mistral-7b",
        "chat-7b@3": "mistral-7b",
        "code-7b@1": "qwen2.5-7b",
        "code-7b@2": "qwen2.5-7b",
        "support-8b@1": "llama-3-8b",
        "support-8b@2": "llama-3-8b",
        "summary-7b@1": "llama-2-7b",
        "extract-7b@1": "mistral-7b",
        "translate-6b@1": "yi-1.5-6b",
    }
)
_INT8 = {like: int8(SHAPES[like]) for like in _LIKE.values()}
_CATALOGUE: Mapping[str, ModelSpec] = MappingProxyType({model: _INT8[like] for model, like in _LIKE.items()})


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a router's config says about a model.

    Args:
        gib: GPU memory of the weights.
        load_s: expected seconds of a cold start, as a client of the node sees it.
        like: the public model whose shape it has, a key of :data:`ccr.shapes.SHAPES`.
        weight_bytes: bytes per weight of its linear layers.
    """

    gib: float
    load_s: float
    like: str
    weight_bytes: int


def catalogue(ids: Iterable[str] = ()) -> dict[str, ModelSpec]:
    """``{id: spec}`` of the models named, or of all of them."""
    wanted = tuple(ids) or tuple(_CATALOGUE)
    for model in wanted:
        if model not in _CATALOGUE:
            raise UnknownModelError(model, f"the catalogue has {', '.join(_CATALOGUE)}")
    return {model: _CATALOGUE[model] for model in wanted}


def model_facts(source: LoadSource) -> dict[str, ModelFacts]:
    """``{id: facts}`` of the whole catalogue, for the ``models:`` section of a router's config.

    Args:
        source: where the nodes load from.
    """
    return {
        model: ModelFacts(
            round(weights_gib(spec), 2),
            round(load_s(spec, source), 3),
            _LIKE[model],
            spec.weight_bytes,
        )
        for model, spec in _CATALOGUE.items()
    }
