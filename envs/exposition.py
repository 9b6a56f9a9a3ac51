"""What a node shows at /metrics: vLLM's names for what vLLM has, our own for residency and memory.

Seconds are the wall clock's, so that telemetry agrees with what a client of a sped-up node measures.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ccr.timing import GIB
from envs.words import NodeState, Place

# vLLM V1's buckets.
_TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_LATENCY_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
_BLOCK_TOKENS = 16


class Histogram:
    """Counts per bucket, as Prometheus wants them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, name: str, labels: str) -> Iterator[str]:
        """Lines of the text format, without ``# TYPE``."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum}"
        yield f"{name}_count{{{labels}}} {total}"


@dataclass(slots=True)
class Finishes:
    """What one model's finished requests add up to.

    Args:
        ttft: times to first token.
        whole: times to last token.
        queried_tokens: of their prompts, looked up in the prefix cache.
        reused_tokens: of these, found there.
    """

    ttft: Histogram = field(default_factory=lambda: Histogram(_TTFT_S))
    whole: Histogram = field(default_factory=lambda: Histogram(_LATENCY_S))
    queried_tokens: int = 0
    reused_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """Everything a scrape shows.

    Args:
        state: of the node.
        kv_bytes_per_token: by model id.
        finishes: by model id.
        speed: node seconds for each second of the wall clock.
        gpu_util: busy fraction of the GPU lately, in [0, 1].
        boot_id: of this life of the node.
        cancelled: requests whose client hung up.
    """

    state: NodeState
    kv_bytes_per_token: Mapping[str, int]
    finishes: Mapping[str, Finishes]
    speed: float
    gpu_util: float
    boot_id: str
    cancelled: int


def render(page: Page) -> str:
    """The text exposition format."""
    return "\n".join([*_engine(page), *_node(page)]) + "\n"


def _engine(page: Page) -> Iterator[str]:
    state = page.state
    models = {_labels(model): one for model, one in state.models.items()}
    yield from _family("vllm:num_requests_running", "gauge", {k: m.running for k, m in models.items()})
    yield from _family("vllm:num_requests_waiting", "gauge", {k: m.waiting for k, m in models.items()})
    # The KV cache is one pool for all models of the node: each shows its whole use.
    yield from _family("vllm:kv_cache_usage_perc", "gauge", dict.fromkeys(models, state.kv_used))
    yield from _family("vllm:prompt_tokens_total", "counter", {k: m.prompt_tokens for k, m in models.items()})
    yield from _family(
        "vllm:generation_tokens_total", "counter", {k: m.generation_tokens for k, m in models.items()}
    )
    finishes = {_labels(model): one for model, one in page.finishes.items()}
    yield from _family(
        "vllm:prefix_cache_queries_total", "counter", {k: f.queried_tokens for k, f in finishes.items()}
    )
    yield from _family(
        "vllm:prefix_cache_hits_total", "counter", {k: f.reused_tokens for k, f in finishes.items()}
    )
    yield "# TYPE vllm:cache_config_info gauge"
    for model in state.at(Place.RESIDENT):
        blocks = int(state.kv_bytes / page.kv_bytes_per_token[model] / _BLOCK_TOKENS)
        yield (
            f'vllm:cache_config_info{{{_labels(model)},block_size="{_BLOCK_TOKENS}",'
            f'num_gpu_blocks="{blocks}"}} 1.0'
        )
    yield from _histograms(
        "vllm:time_to_first_token_seconds", ((labels, f.ttft) for labels, f in finishes.items())
    )
    yield from _histograms(
        "vllm:e2e_request_latency_seconds", ((labels, f.whole) for labels, f in finishes.items())
    )


def _node(page: Page) -> Iterator[str]:
    state = page.state
    load_s = {m: one.load_s / page.speed for m, one in state.models.items() if one.load_s is not None}
    yield from _family("ccr_node_gpu_memory_used_bytes", "gauge", {"": round(state.gpu_used_gib * GIB)})
    yield from _family("ccr_node_gpu_memory_total_bytes", "gauge", {"": round(state.gpu_total_gib * GIB)})
    yield from _family("ccr_node_gpu_memory_peak_bytes", "gauge", {"": round(state.gpu_peak_gib * GIB)})
    yield from _family("ccr_node_gpu_utilization", "gauge", {"": page.gpu_util})
    yield from _by_model("ccr_node_model_loaded", dict.fromkeys(state.at(Place.RESIDENT), 1))
    yield from _by_model("ccr_node_model_loading", dict.fromkeys(state.at(Place.LOADING), 1))
    yield from _by_model("ccr_node_model_load_seconds", load_s)
    yield from _family("ccr_node_cold_starts_total", "counter", {"": state.cold_starts})
    yield from _family("ccr_node_requests_cancelled_total", "counter", {"": page.cancelled})
    yield from _family("ccr_node_boot_info", "gauge", {f'boot_id="{page.boot_id}"': 1})


def _labels(model: str) -> str:
    return f'engine="0",model_name="{model}"'


def _by_model(name: str, values: Mapping[str, float]) -> Iterator[str]:
    return _family(name, "gauge", {f'model="{model}"': value for model, value in values.items()})


def _family(name: str, kind: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"


def _histograms(name: str, values: Iterable[tuple[str, Histogram]]) -> Iterator[str]:
    yield f"# TYPE {name} histogram"
    for labels, histogram in values:
        yield from histogram.samples(name, labels)
