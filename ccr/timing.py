"""How long an A10 takes: prefill, decode, weights, KV cache and loads, as pure functions.

The one timing model of the house: the emulated node and the simulator both read it. The equations and constants are
fitted to published step times of Llama-2-7B and Yi-1.5-6B on an NVIDIA A10 (Aegaeon, SOSP'25 artifact: vLLM, fp16,
eager mode, 12 repeats per cell). Seen on those profiles: 3.7-5.6 % mean absolute error. No A10 measurement of a well
implemented int8 7B was found: take int8 step times as +-30 %.

Units: seconds, bytes, GiB (2**30 bytes), GB/s (10**9 bytes per second).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import NamedTuple

from ccr.errors import ConfigError

GIB = 2**30
GB = 10**9
_FP16_BYTES = 2

#: Share of the visible memory an engine claims: vLLM's default `gpu_memory_utilization`.
UTILISATION = 0.90
# Activations of the first model, and of each further one beside it. 0.90 and 0.6 GiB together reproduce the 14,000 KV
# tokens S-LoRA publishes for Llama-7B fp16 on 24 GB (13,710 here).
_FIRST_ACTIVATIONS_GIB = 0.6
_NEXT_ACTIVATIONS_GIB = 0.3


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model's architecture says about its cost.

    Args:
        architecture: whose shape it is, e.g. ``Llama-2-7B int8``.
        parameters: all parameters, P.
        embedding_parameters: parameters of the input embedding, E.
        layers: transformer layers, L.
        hidden: hidden size, h.
        weight_bytes: bytes per weight of the linear layers: 2 for fp16, 1 for int8. Embedding and head stay fp16.
        kv_bytes_per_token: keys and values of one token in all layers, fp16.
        tied: whether the output head is the input embedding.
        compute_gain: speed-up of the linear layers' arithmetic: 1 for weight-only int8, about 1.5 for W8A8.
        base: for a LoRA sibling, id of the model whose weights it shares; the shape is that model's.
        adapter_bytes: for a LoRA sibling, bytes of its adapter.
    """

    architecture: str
    parameters: int
    embedding_parameters: int
    layers: int
    hidden: int
    weight_bytes: int
    kv_bytes_per_token: int
    tied: bool = False
    compute_gain: float = 1.0
    base: str = ""
    adapter_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """Weights in memory, in bytes."""
        fp16 = self.embedding_parameters * (1 if self.tied else 2)
        return self.weight_bytes * (self.parameters - fp16) + _FP16_BYTES * fp16

    @property
    def streamed_bytes(self) -> int:
        """Weights one decode step reads, in bytes: everything but an untied input embedding."""
        looked_up = 0 if self.tied else _FP16_BYTES * self.embedding_parameters
        return self.stored_bytes - looked_up

    @property
    def multiplied(self) -> int:
        """Weights that take part in a multiplication for each token."""
        return self.parameters if self.tied else self.parameters - self.embedding_parameters


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """A card, relative to the A10 the constants were fitted on.

    Args:
        name: as in ``labels: {gpu: ...}``.
        total_gib: memory an engine sees.
        bandwidth: memory bandwidth as a multiple of the A10's 600 GB/s.
        compute: dense fp16 tensor throughput as a multiple of the A10's 125 TFLOPS.
        origin: ``measured`` or ``scaled, not measured``.
    """

    name: str
    total_gib: float
    bandwidth: float
    compute: float
    origin: str

    @property
    def budget_bytes(self) -> float:
        """Bytes an engine may fill with weights, activations and KV cache."""
        return UTILISATION * self.total_gib * GIB


@dataclass(frozen=True, slots=True)
class EnginePreset:
    """The engine's share of a step on an A10.

    Args:
        name: ``eager`` or ``graph``.
        prefill_fixed_s: a, per prefill batch.
        linear_flops: F1, linear layers.
        attention_flops: F2, attention over the prompt.
        prefill_bandwidth: BWp, bytes per second, the floor of a short prefill.
        decode_bandwidth: BW, bytes per second, weights in a decode step.
        per_sequence_s: c, launch and sampling cost of each sequence in a decode step.
        kv_bandwidth: BWkv, bytes per second, keys and values in a decode step.
    """

    name: str
    prefill_fixed_s: float
    linear_flops: float
    attention_flops: float
    prefill_bandwidth: float
    decode_bandwidth: float
    per_sequence_s: float
    kv_bandwidth: float


@dataclass(frozen=True, slots=True)
class LoadSource:
    """Where weights come from.

    Args:
        name: key in :data:`LOAD_SOURCES`.
        fixed_s: seconds on top of the bytes.
        bytes_per_s: rate.
        sd: standard deviation of a load, as a fraction of its mean.
        origin: where the figures are from.
        adapter_fixed_s: seconds on top of the bytes of a LoRA adapter.
    """

    name: str
    fixed_s: float
    bytes_per_s: float
    sd: float
    origin: str
    adapter_fixed_s: float = 0.0


class StepCosts(NamedTuple):
    """One model on one card under one engine, as seven numbers; see :func:`prefill_s` and :func:`decode_s`.

    A tuple, so that compiled kernels call :func:`prefill_step_s` and :func:`decode_s` as they are.

    Args:
        prefill_fixed_s: per prefill batch.
        prefill_floor_s: least time of the arithmetic: one pass over the weights.
        prefill_token_s: per prompt token.
        prefill_square_s: per squared prompt length.
        decode_fixed_s: per decode step: one pass over the weights.
        decode_sequence_s: per sequence in the step.
        decode_context_s: per token of context in the step.
    """

    prefill_fixed_s: float
    prefill_floor_s: float
    prefill_token_s: float
    prefill_square_s: float
    decode_fixed_s: float
    decode_sequence_s: float
    decode_context_s: float


# 22.05 GiB of 24 GB visible to the engine (believed; fits S-LoRA's KV tokens). L4: 300 GB/s, 121 TFLOPS, 24 GB;
# A100-80G: 2,039 GB/s, 312 TFLOPS, 80 GB (vendor data sheets); their visible memory is believed.
GPUS: Mapping[str, GpuSpec] = MappingProxyType(
    {
        "A10": GpuSpec("A10", 22.05, 1.0, 1.0, "measured"),
        "L4": GpuSpec("L4", 22.05, 300 / 600, 121 / 125, "scaled, not measured"),
        "A100-80G": GpuSpec("A100-80G", 79.1, 2039 / 600, 312 / 125, "scaled, not measured"),
    }
)

# eager: Aegaeon's profiles. graph: default engines with CUDA graphs, from batch-1 steps of Llama-3-8B on A10G
# (29.9-30.7 ms; vLLM 0.4.3, TGI, NIM; philschmid/llmperf). Prefill is the same in both.
PRESETS: Mapping[str, EnginePreset] = MappingProxyType(
    {
        "eager": EnginePreset("eager", 7.7e-3, 67.3e12, 39.4e12, 468 * GB, 421 * GB, 0.219e-3, 322 * GB),
        "graph": EnginePreset("graph", 7.7e-3, 67.3e12, 39.4e12, 468 * GB, 495 * GB, 0.05e-3, 322 * GB),
    }
)

# A running engine takes an adapter from disk, checks it and copies it into a slot (assumed).
_ADAPTER_FROM_DISK_S = 0.1

LOAD_SOURCES: Mapping[str, LoadSource] = MappingProxyType(
    {
        "process": LoadSource(
            "process",
            45.0,
            2.6 * GB,
            0.17,
            "30-60 s engine start (vllm issue 20264) and safetensors from disk",
            _ADAPTER_FROM_DISK_S,
        ),
        "engine_swap": LoadSource(
            "engine_swap",
            3.0,
            2.6 * GB,
            0.17,
            "safetensors from disk into a running engine, and 3 s (assumed) for its new KV cache and warm-up batch",
            _ADAPTER_FROM_DISK_S,
        ),
        "disk_safetensors": LoadSource(
            "disk_safetensors",
            0.0,
            2.6 * GB,
            0.17,
            "13.3 GB in 5.09 s on an A5000 (ServerlessLLM results)",
            _ADAPTER_FROM_DISK_S,
        ),
        "disk_fast": LoadSource(
            "disk_fast",
            0.0,
            12.5 * GB,
            0.17,
            "13.3 GB in 1.06 s (p50), fast loader (ServerlessLLM results)",
            _ADAPTER_FROM_DISK_S,
        ),
        "remote": LoadSource(
            "remote",
            4.0,
            0.4 * GB,
            0.5,
            "p50 22.7 s, p90 42 s, LoRA 4.4 s (GenTD26, GPU and sizes not named; 7.5 GB and 0.16 GB assumed)",
            4.0,
        ),
        "host_pinned": LoadSource("host_pinned", 0.0, 16 * GB, 0.0, "PCIe 4.0 x16: 16-24 GB/s"),
        "resident": LoadSource("resident", 0.0, inf, 0.0, "already there"),
    }
)


def step_costs(model: ModelSpec, gpu: GpuSpec, preset: EnginePreset, bw_scale: float = 1.0) -> StepCosts:
    """The cost of every step of one model on one node.

    Args:
        model: what runs.
        gpu: where.
        preset: under which engine.
        bw_scale: this node's memory bandwidth relative to the fit, > 0; found by calibration.
    """
    if not bw_scale > 0:
        raise ConfigError(f"bw_scale is {bw_scale!r}; give a number above 0 (1 is the fitted A10)")
    bandwidth = gpu.bandwidth * bw_scale
    return StepCosts(
        prefill_fixed_s=preset.prefill_fixed_s,
        prefill_floor_s=model.streamed_bytes / (preset.prefill_bandwidth * bandwidth),
        prefill_token_s=2 * model.multiplied / (preset.linear_flops * gpu.compute * model.compute_gain),
        prefill_square_s=2 * model.layers * model.hidden / (preset.attention_flops * gpu.compute),
        decode_fixed_s=model.streamed_bytes / (preset.decode_bandwidth * bandwidth),
        decode_sequence_s=preset.per_sequence_s,
        decode_context_s=model.kv_bytes_per_token / (preset.kv_bandwidth * bandwidth),
    )


def prefill_s(costs: StepCosts, lengths: Sequence[int], cached: Sequence[int] = ()) -> float:
    """Seconds to read a batch of prompts and give the first token of each.

    Args:
        costs: of the model on the node.
        lengths: tokens of each prompt.
        cached: leading tokens of each whose keys and values are there already; none when left out.
    """
    tokens = sum(lengths) - sum(cached)
    squares = sum(n * n for n in lengths) - sum(n * n for n in cached)
    return prefill_step_s(costs, tokens, squares)


def prefill_step_s(costs: StepCosts, tokens: int, squares: int) -> float:
    """Seconds of one prefill step, see :func:`prefill_s`.

    Args:
        costs: of the model on the node.
        tokens: new prompt tokens of the whole batch.
        squares: squared length of each prompt less the squared length of its cached part, summed.
    """
    arithmetic = costs.prefill_token_s * tokens + costs.prefill_square_s * squares
    return costs.prefill_fixed_s + max(arithmetic, costs.prefill_floor_s)


def decode_s(costs: StepCosts, sequences: int, context_tokens: int) -> float:
    """Seconds of one decode step: one more token for each of ``sequences``.

    Args:
        costs: of the model on the node.
        sequences: in the batch, B.
        context_tokens: of all of them together, K.
    """
    return (
        costs.decode_fixed_s + costs.decode_sequence_s * sequences + costs.decode_context_s * context_tokens
    )


def activation_bytes(models: int) -> float:
    """Bytes the activations of ``models`` co-resident models take."""
    if models == 0:
        return 0.0
    return (_FIRST_ACTIVATIONS_GIB + _NEXT_ACTIVATIONS_GIB * (models - 1)) * GIB


def kv_bytes(gpu: GpuSpec, resident: Sequence[ModelSpec]) -> float:
    """Bytes left for KV cache beside the resident models; negative when they do not fit."""
    weights = sum(model.stored_bytes for model in resident)
    return gpu.budget_bytes - weights - activation_bytes(len(resident))


def kv_tokens(gpu: GpuSpec, resident: Sequence[ModelSpec]) -> int:
    """Tokens of the first resident model that the KV cache holds when it has all of it."""
    return max(0, int(kv_bytes(gpu, resident) / resident[0].kv_bytes_per_token))


def weights_gib(model: ModelSpec) -> float:
    """GPU memory of the weights, in GiB."""
    return model.stored_bytes / GIB


def load_s(model: ModelSpec, source: LoadSource) -> float:
    """Mean seconds to bring the weights in from ``source``."""
    return source.fixed_s + model.stored_bytes / source.bytes_per_s


def adapter_s(model: ModelSpec, source: LoadSource) -> float:
    """Mean seconds to bring the LoRA adapter of a sibling in from ``source``."""
    return source.adapter_fixed_s + model.adapter_bytes / source.bytes_per_s
