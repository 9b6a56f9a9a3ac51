"""What a model costs on a node: the book's prices, from the model's architecture and the node's card."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from ccr.book import BANDWIDTH, BUDGET_GIB, OVERHEAD_S, Book, Floats, blank
from ccr.shapes import LLAMA_3_8B, int8
from ccr.timing import (
    GIB,
    GPUS,
    LOAD_SOURCES,
    PRESETS,
    EnginePreset,
    GpuSpec,
    LoadSource,
    ModelSpec,
    activation_bytes,
    adapter_s,
    load_s,
    step_costs,
)
from ccr.types import NodeSpec

#: Architecture of a model nobody described: the shape of an 8B with grouped keys and values (Llama-3-8B), scaled to its size.
_TYPICAL = replace(int8(LLAMA_3_8B), architecture="typical, scaled")
_TYPICAL_GIB: Final = _TYPICAL.stored_bytes / GIB

#: Card -> how its name is spelled by NVIDIA's tools, operators and clouds, after :func:`gpu_of` took out what does not matter.
#: An A10G has the memory and the bandwidth of an A10; the graph preset was fitted on it.
_SPELLINGS: Final = {
    "A10": re.compile(r"A10G?(-PCIE)?(-24GB?)?"),
    "L4": re.compile(r"L4(-PCIE)?(-24GB?)?"),
    "A100-80G": re.compile(r"A100(-SXM4?|-PCIE)?-80GB?(-SXM4?|-PCIE)?"),
}


def gpu_of(label: str) -> GpuSpec | None:
    """The card a label names, however it spells it: ``A10``, ``NVIDIA-A10``, ``NVIDIA A100-SXM4-80GB``; ``None`` if unknown.

    Slices and shares of a card (``...-MIG-1g.10gb``, ``...-SHARED``) are not the card.
    """
    name = re.sub(r"[\s_-]+", "-", label.strip().upper())
    name = re.sub(r"^(NVIDIA-)?(TESLA-)?", "", name)
    spelled = (GPUS[gpu] for gpu, spelling in _SPELLINGS.items() if spelling.fullmatch(name))
    return next(spelled, GPUS.get(name))


class Stated(NamedTuple):
    """What an operator says a model costs; 0 where nothing is said.

    Args:
        gib: GPU memory of its weights, or of its adapter.
        load_s: time to load them.
    """

    gib: float = 0.0
    load_s: float = 0.0


_NOTHING: Final = Stated()

# 0.16 GB, as assumed of the LoRA adapters of GenTD26 (`LOAD_SOURCES["remote"]`).
_TYPICAL_ADAPTER_GIB: Final = 0.15


def adapter_of(base: str, shape: ModelSpec, gib: float = 0.0) -> ModelSpec:
    """A LoRA sibling of a model.

    Args:
        base: id of the model whose weights it shares.
        shape: that model's architecture.
        gib: its adapter; 0 when unknown.
    """
    return replace(shape, base=base, adapter_bytes=int((gib or _TYPICAL_ADAPTER_GIB) * GIB))


@dataclass(frozen=True, slots=True)
class NodePrices:
    """What a node is made of, as far as its prices go.

    Args:
        gpu: the card.
        preset: the engine.
        source: where weights come from.
        overhead_s: seconds a request takes besides its steps.
        bw_scale: memory bandwidth relative to the card's.
    """

    gpu: GpuSpec
    preset: EnginePreset = field(default_factory=lambda: PRESETS["graph"])
    source: LoadSource = field(default_factory=lambda: LOAD_SOURCES["engine_swap"])
    overhead_s: float = 0.0
    bw_scale: float = 1.0

    @classmethod
    def of(cls, spec: NodeSpec) -> "NodePrices":
        """From a configured node: ``labels.gpu`` names the card, ``gpu_total_gib`` its memory; an A10 where nothing is said."""
        known = gpu_of(spec.labels.get("gpu", "")) or GPUS["A10"]
        if spec.gpu_total_gib:
            known = GpuSpec(known.name, spec.gpu_total_gib, known.bandwidth, known.compute, known.origin)
        return cls(known)


@dataclass(frozen=True, slots=True)
class PriceList:
    """Models by id, and nodes.

    Args:
        models: architecture by model id; others are taken for the typical one, scaled to their size.
        nodes: what a node is made of, by node id; others are read off their configured facts.
        stated: what the operator says of models, by id; it wins over the architecture.
    """

    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    nodes: Mapping[str, NodePrices] = field(default_factory=dict)
    stated: Mapping[str, Stated] = field(default_factory=dict)

    def model(self, model: str, gib: float = 0.0) -> ModelSpec:
        """The architecture of a model.

        Args:
            model: id.
            gib: its weights, where the catalogue tells; 0 when unknown.
        """
        known = self._described(model)
        if known is not None:
            return known
        scale = gib / _TYPICAL_GIB if gib else 1.0
        return ModelSpec(
            _TYPICAL.architecture,
            int(_TYPICAL.parameters * scale),
            int(_TYPICAL.embedding_parameters * scale),
            _TYPICAL.layers,
            _TYPICAL.hidden,
            _TYPICAL.weight_bytes,
            _TYPICAL.kv_bytes_per_token,
        )

    def base(self, model: str) -> str:
        """Id of the model whose weights a LoRA sibling shares; empty for a model with weights of its own."""
        known = self._described(model)
        return known.base if known is not None else ""

    def adapter_s(self, model: str, specs: Sequence[NodeSpec], stated_s: float = 0.0) -> Floats:
        """Seconds each node takes to load the adapter of a sibling, on weights that are there already, shape ``(n,)``."""
        stated_s = stated_s or self.stated.get(model, _NOTHING).load_s
        sibling = self.model(model)
        nodes = [self.node(spec) for spec in specs]
        return np.array([stated_s or adapter_s(sibling, node.source) for node in nodes])

    def node(self, spec: NodeSpec) -> NodePrices:
        """What a node is made of."""
        return self.nodes.get(spec.id) or NodePrices.of(spec)

    def book(self, models: Sequence[tuple[str, float, float]], specs: Sequence[NodeSpec]) -> Book:
        """A blank book with all prices in it.

        Args:
            models: id, GiB and load seconds of each row; 0 where only :attr:`stated` or the architecture may know.
            specs: the nodes.
        """
        book = blank(len(models), len(specs))
        models = [self._with_stated(*each) for each in models]
        for n, spec in enumerate(specs):
            node = self.node(spec)
            gpu = node.gpu
            book.load[BUDGET_GIB, n] = (gpu.budget_bytes - activation_bytes(2)) / GIB
            book.load[OVERHEAD_S, n] = node.overhead_s
            book.load[BANDWIDTH, n] = gpu.bandwidth * node.bw_scale
            for m, (name, gib, stated_s) in enumerate(models):
                model = self.model(name, gib)
                costs = step_costs(model, gpu, node.preset, node.bw_scale)
                book.costs[:, m, n] = np.array([
                    costs.prefill_fixed_s, costs.prefill_floor_s, costs.prefill_token_s, costs.prefill_square_s,
                    costs.decode_fixed_s, costs.decode_sequence_s, costs.decode_context_s,
                ])  # fmt: skip
                book.load_s[m, n] = stated_s or load_s(model, node.source)
                from_host_s = load_s(model, LOAD_SOURCES["host_pinned"])
                book.host_load_s[m, n] = min(from_host_s, book.load_s[m, n])
                book.weights_gib[m] = gib or model.stored_bytes / GIB
                book.kv_gib[m] = model.kv_bytes_per_token / GIB
        return book

    def _described(self, model: str) -> ModelSpec | None:
        return self.models.get(model) or self.models.get(model.partition("@")[0])

    def _with_stated(self, model: str, gib: float, load_s: float) -> tuple[str, float, float]:
        stated = self.stated.get(model, _NOTHING)
        return model, gib or stated.gib, load_s or stated.load_s
