"""What a model costs on a node: the book's prices, from the model's architecture and the node's card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ccr.book import BANDWIDTH, BUDGET_GIB, OVERHEAD_S, Book, blank
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
    load_s,
    step_costs,
)
from ccr.types import NodeSpec

#: Architecture of a model nobody described: the shape of an 8B with grouped keys and values (Llama-3-8B), scaled to its size.
_TYPICAL = ModelSpec("typical, scaled", 8_030_261_248, 128_256 * 4096, 32, 4096, 1, 128 * 1024)
_TYPICAL_GIB: Final = _TYPICAL.stored_bytes / GIB


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
        known = GPUS.get(spec.labels.get("gpu", "A10"), GPUS["A10"])
        if spec.gpu_total_gib:
            known = GpuSpec(known.name, spec.gpu_total_gib, known.bandwidth, known.compute, known.origin)
        return cls(known)


@dataclass(frozen=True, slots=True)
class PriceList:
    """Models by id, and nodes.

    Args:
        models: architecture by model id; others are taken for the typical one, scaled to their size.
        nodes: what a node is made of, by node id; others are read off their configured facts.
    """

    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    nodes: Mapping[str, NodePrices] = field(default_factory=dict)

    def model(self, model: str, gib: float = 0.0) -> ModelSpec:
        """The architecture of a model.

        Args:
            model: id.
            gib: its weights, where the catalogue tells; 0 when unknown.
        """
        known = self.models.get(model) or self.models.get(model.partition("@")[0])
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

    def node(self, spec: NodeSpec) -> NodePrices:
        """What a node is made of."""
        return self.nodes.get(spec.id) or NodePrices.of(spec)

    def book(self, models: Sequence[tuple[str, float, float]], specs: Sequence[NodeSpec]) -> Book:
        """A blank book with all prices in it.

        Args:
            models: id, GiB (0 unknown) and load seconds (0 unknown) of each row.
            specs: the nodes.
        """
        book = blank(len(models), len(specs))
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
                book.host_load_s[m, n] = min(load_s(model, LOAD_SOURCES["host_pinned"]), book.load_s[m, n])
                book.weights_gib[m] = gib or model.stored_bytes / GIB
                book.kv_gib[m] = model.kv_bytes_per_token / GIB
        return book
