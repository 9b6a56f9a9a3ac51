"""The metrics: one function each, in one table; computed from what the router counts when somebody asks."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ccr.types import Fleet
from ccr.version import __version__
from router.dispatch import Dispatch
from router.feedback.feeder import Counts as Fed
from router.publishing.follower import Followed
from router.publishing.guardian import Guardian
from router.recording.recorder import Counts
from router.sharing.fleet import Shared
from router.stats import ByModel, Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
GIB: Final = 2.0**30


@dataclass(frozen=True, slots=True)
class View:
    """What a metric function may look at."""

    dispatch: Dispatch
    fleet: Fleet
    now_s: float
    is_ready: bool
    recorded: Counts = field(default_factory=Counts)
    store_is_up: bool = True
    fed: Fed | None = None
    followed: Followed | None = None
    weights_age_s: float = 0.0
    shared: Shared | None = None
    coverage: float = 1.0
    guardian: Guardian | None = None


Function = Callable[[View], Metric]


def requests_total(view: View) -> Metric:
    """Requests by their one terminal outcome."""
    family = CounterMetricFamily(
        "ccr_requests", requests_total.__doc__ or "", labels=["model", "version", "outcome"]
    )
    for labels, value in view.dispatch.stats.outcomes.items():
        family.add_metric(labels, value)
    return family


def request_errors_total(view: View) -> Metric:
    """Requests the router answered itself, by reason."""
    return _counter(
        "ccr_request_errors", request_errors_total, "error_code", view.dispatch.stats.refusals.items()
    )


def tenant_requests_total(view: View) -> Metric:
    """Requests that reached a node, by API key name."""
    return _counter(
        "ccr_tenant_requests", tenant_requests_total, "tenant", view.dispatch.stats.by_tenant.items()
    )


def request_duration_seconds(view: View) -> Metric:
    """Arrival to last byte, of successful requests."""
    return _by_model("ccr_request_duration_seconds", request_duration_seconds, view.dispatch.stats.duration_s)


def request_ttft_seconds(view: View) -> Metric:
    """Arrival to first byte, of successful requests."""
    return _by_model("ccr_request_ttft_seconds", request_ttft_seconds, view.dispatch.stats.ttft_s)


def request_tpot_seconds(view: View) -> Metric:
    """Time per output token after the first, of successful streamed requests whose engine reports usage."""
    return _by_model("ccr_request_tpot_seconds", request_tpot_seconds, view.dispatch.stats.tpot_s)


def tokens_total(view: View) -> Metric:
    """Tokens as the engines report them."""
    family = CounterMetricFamily("ccr_tokens", tokens_total.__doc__ or "", labels=["model", "kind"])
    for labels, value in view.dispatch.stats.tokens.items():
        family.add_metric(labels, value)
    return family


def decision_duration_seconds(view: View) -> Metric:
    """Time to choose a node: mask, scores, pick, guard."""
    family = HistogramMetricFamily("ccr_decision_duration_seconds", decision_duration_seconds.__doc__ or "")
    family.add_metric([], *_histogram(view.dispatch.stats.decision_s))
    return family


def score_duration(view: View) -> Metric:
    """Slowest choice of a node in the last 15 s, seconds (the founding article's name; alarm at 0.05)."""
    slowest_s = view.dispatch.stats.slowest_decision_s(view.now_s)
    return GaugeMetricFamily("router_score_duration", score_duration.__doc__ or "", value=slowest_s)


def decisions_total(view: View) -> Metric:
    """Choices of a node, by the policy that scored."""
    return _counter("ccr_decisions", decisions_total, "policy", view.dispatch.stats.decisions.items())


def policy_fallback_total(view: View) -> Metric:
    """Choices where the policy failed and the fallback scored, by the policy that failed."""
    return _counter(
        "ccr_policy_fallback", policy_fallback_total, "policy", view.dispatch.stats.fallbacks.items()
    )


def policy_reloads_total(view: View) -> Metric:
    """Reloads of the operator script, by result."""
    return _counter(
        "ccr_policy_reloads", policy_reloads_total, "result", view.dispatch.stats.policy_reloads.items()
    )


def policy_info(view: View) -> Metric:
    """The policy in force."""
    described = view.dispatch.policies.describe()
    script = described["script"] or {}
    value = {
        "policy": described["name"],
        "fallback": described["fallback"],
        "sha256": script.get("sha256", ""),
    }
    return InfoMetricFamily("ccr_policy", policy_info.__doc__ or "", value=value)


def policy_epoch(view: View) -> Metric:
    """Grows by one with each change of policy."""
    return GaugeMetricFamily(
        "ccr_policy_epoch", policy_epoch.__doc__ or "", value=view.dispatch.policies.epoch
    )


def guard_override_total(view: View) -> Metric:
    """Choices that the bounded-load guard moved to another node."""
    return CounterMetricFamily(
        "ccr_guard_override", guard_override_total.__doc__ or "", value=view.dispatch.stats.guard_overrides
    )


def exploration_cost_seconds_total(view: View) -> Metric:
    """Expected latency lost by exploration: seconds against the best node, weighted by the probability."""
    return CounterMetricFamily(
        "ccr_exploration_cost_seconds",
        exploration_cost_seconds_total.__doc__ or "",
        value=view.dispatch.policies.budget.cost_s,
    )


def exploration_budget_used(view: View) -> Metric:
    """Share of `policy.exploration_budget` that is used; exploration stands still from 1 on."""
    return GaugeMetricFamily(
        "ccr_exploration_budget_used_ratio",
        exploration_budget_used.__doc__ or "",
        value=view.dispatch.policies.budget.used,
    )


def holds_total(view: View) -> Metric:
    """Times the policy held a request for a moment instead of choosing a node; what it refuses is an error `saturated`."""
    return CounterMetricFamily("ccr_holds", holds_total.__doc__ or "", value=view.dispatch.stats.holds)


def cold_starts_total(view: View) -> Metric:
    """Requests sent to a node that did not have the weights resident."""
    return _counter("ccr_cold_starts", cold_starts_total, "model", view.dispatch.stats.cold_starts.items())


def upstream_attempts_total(view: View) -> Metric:
    """Requests sent to nodes, retries included."""
    return CounterMetricFamily(
        "ccr_upstream_attempts", upstream_attempts_total.__doc__ or "", value=view.dispatch.stats.attempts
    )


def retries_total(view: View) -> Metric:
    """Requests sent to a second node."""
    return CounterMetricFamily("ccr_retries", retries_total.__doc__ or "", value=view.dispatch.stats.retries)


def retry_budget_exhausted_total(view: View) -> Metric:
    """Retries that were not made because the budget was spent."""
    return CounterMetricFamily(
        "ccr_retry_budget_exhausted",
        retry_budget_exhausted_total.__doc__ or "",
        value=view.dispatch.retries.exhausted_total,
    )


def feedback_total(view: View) -> Metric:
    """Calls of /feedback, by result."""
    return _counter("ccr_feedback", feedback_total, "result", view.dispatch.stats.feedback.items())


def batched_requests_total(view: View) -> Metric:
    """Requests held in a batching window."""
    return CounterMetricFamily(
        "ccr_batched_requests", batched_requests_total.__doc__ or "", value=view.dispatch.stats.requests_held
    )


def inflight_requests(view: View) -> Metric:
    """Requests in flight by this router's ledger, per node."""
    own = [state.inflight for state in view.dispatch.fleet.states]
    return _per_node("ccr_inflight_requests", inflight_requests, view, own)


def node_qps(view: View) -> Metric:
    """Requests per second this router sent to the node, decayed over 5 s (the founding article's name)."""
    return _per_node("ccr_node_qps", node_qps, view, view.dispatch.fleet.sent_per_s(view.now_s))


def node_available(view: View) -> Metric:
    """1 while the node is in rotation."""
    return _per_node("ccr_node_available", node_available, view, view.fleet.available.astype(float))


def node_latency_seconds(view: View) -> Metric:
    """Decayed mean latency of the node as seen here; failures count as the penalty."""
    return _per_node("ccr_node_latency_seconds", node_latency_seconds, view, view.fleet.latency_s)


def node_queue(view: View) -> Metric:
    """Requests waiting in the node's engine, by telemetry."""
    return _per_node("ccr_node_engine_waiting", node_queue, view, view.fleet.waiting)


def node_kv_used(view: View) -> Metric:
    """Used fraction of the node's KV cache, by telemetry."""
    return _per_node("ccr_node_kv_used_ratio", node_kv_used, view, view.fleet.kv_used)


def node_memory_total(view: View) -> Metric:
    """GPU memory of the node."""
    return _per_node(
        "ccr_node_gpu_memory_total_bytes", node_memory_total, view, view.fleet.gpu_total_gib * GIB
    )


def node_memory_used(view: View) -> Metric:
    """Used GPU memory of the node."""
    used = view.fleet.gpu_total_gib - view.fleet.gpu_free_gib
    return _per_node("ccr_node_gpu_memory_used_bytes", node_memory_used, view, used * GIB)


def gpu_memory_used(view: View) -> Metric:
    """Used GPU memory in percent of the card (the founding article's name; alarm at 95)."""
    family = GaugeMetricFamily("gpu_memory_used", gpu_memory_used.__doc__ or "", labels=["node"])
    for spec, free, total in zip(
        view.fleet.specs, view.fleet.gpu_free_gib, view.fleet.gpu_total_gib, strict=True
    ):
        if total > 0.0:
            family.add_metric([spec.id], 100.0 * (1.0 - free / total))
    return family


def model_load_time(view: View) -> Metric:
    """Seconds the last load of a model took on a node (the founding article's name)."""
    family = GaugeMetricFamily("ccr_model_load_time", model_load_time.__doc__ or "", labels=["node", "model"])
    for state in view.dispatch.fleet.states:
        for model, load_s in state.load_s.items():
            family.add_metric([state.spec.id, model], load_s)
    return family


def telemetry_age_seconds(view: View) -> Metric:
    """Age of the node's last reading."""
    return _per_node("ccr_telemetry_age_seconds", telemetry_age_seconds, view, view.fleet.telemetry_age_s)


def telemetry_errors_total(view: View) -> Metric:
    """Readings that failed or were refused."""
    family = CounterMetricFamily(
        "ccr_telemetry_errors", telemetry_errors_total.__doc__ or "", labels=["node", "reason"]
    )
    for labels, value in view.dispatch.stats.telemetry_errors.items():
        family.add_metric(labels, value)
    return family


def ejections_total(view: View) -> Metric:
    """Nodes taken out of rotation for their failures."""
    return CounterMetricFamily(
        "ccr_ejections", ejections_total.__doc__ or "", value=view.dispatch.fleet.ejections_total
    )


def panic(view: View) -> Metric:
    """1 while so many nodes fail that no more are taken out for errors."""
    return GaugeMetricFamily("ccr_panic", panic.__doc__ or "", value=float(view.dispatch.fleet.panic))


def record_rows_total(view: View) -> Metric:
    """Rows of recorded traces that were written."""
    return _counter("ccr_record_rows", record_rows_total, "kind", view.recorded.rows.items())


def record_dropped_total(view: View) -> Metric:
    """Rows that a recording left out; alarm when `queue_full` or `failed` grows."""
    return _counter("ccr_record_dropped", record_dropped_total, "reason", view.recorded.dropped.items())


def record_bytes(view: View) -> Metric:
    """Disk the recordings take in the directory last recorded into."""
    return GaugeMetricFamily("ccr_record_bytes", record_bytes.__doc__ or "", value=float(view.recorded.bytes))


def record_segments_deleted_total(view: View) -> Metric:
    """Oldest files of recordings that gave way to `record.max_bytes`."""
    return CounterMetricFamily(
        "ccr_record_segments_deleted",
        record_segments_deleted_total.__doc__ or "",
        value=view.recorded.deleted,
    )


def record_failures_total(view: View) -> Metric:
    """Recordings that ended, or did not begin, because the disk refused them."""
    return CounterMetricFamily(
        "ccr_record_failures", record_failures_total.__doc__ or "", value=view.recorded.failures
    )


def feedback_taken_total(view: View) -> Metric:
    """Records for the learner: one for each request, and one for each try that failed before another node got it."""
    return _fed_counter("ccr_feedback_taken", feedback_taken_total, view, "taken")


def feedback_recovered_total(view: View) -> Metric:
    """Records that an earlier process left on the disk."""
    return _fed_counter("ccr_feedback_recovered", feedback_recovered_total, view, "recovered")


def feedback_stored_total(view: View) -> Metric:
    """Records that are in the store."""
    return _fed_counter("ccr_feedback_stored", feedback_stored_total, view, "stored")


def feedback_dropped_total(view: View) -> Metric:
    """Records that were lost; alarm when it grows."""
    fed = view.fed or Fed()
    return _counter("ccr_feedback_dropped", feedback_dropped_total, "reason", fed.dropped.items())


def feedback_waiting(view: View) -> Metric:
    """Records in memory on their way to the store."""
    return GaugeMetricFamily(
        "ccr_feedback_waiting", feedback_waiting.__doc__ or "", value=(view.fed or Fed()).waiting
    )


def feedback_spooled(view: View) -> Metric:
    """Records on the disk that wait for the store."""
    return GaugeMetricFamily(
        "ccr_feedback_spooled", feedback_spooled.__doc__ or "", value=(view.fed or Fed()).spooled
    )


def weights_version(view: View) -> Metric:
    """Version of the published weights that were taken last; 0 before there were any."""
    followed = view.followed or Followed()
    return GaugeMetricFamily(
        "ccr_weights_version", weights_version.__doc__ or "", value=followed.fence.version
    )


def weights_epoch(view: View) -> Metric:
    """Epoch of the published weights that were taken last: it grows when another learner takes over."""
    followed = view.followed or Followed()
    return GaugeMetricFamily("ccr_weights_epoch", weights_epoch.__doc__ or "", value=followed.fence.epoch)


def weights_age_seconds(view: View) -> Metric:
    """Time since there was word of a publisher; 0 before there were weights."""
    return GaugeMetricFamily(
        "ccr_weights_age_seconds", weights_age_seconds.__doc__ or "", value=view.weights_age_s
    )


def weights_stale(view: View) -> Metric:
    """1 while the fallback serves because nothing was heard of a publisher for too long."""
    is_stale = (view.followed or Followed()).is_stale
    return GaugeMetricFamily("ccr_weights_stale", weights_stale.__doc__ or "", value=float(is_stale))


def weights_refused_total(view: View) -> Metric:
    """Published weights that were not taken, by reason."""
    refused = (view.followed or Followed()).refused
    return _counter("ccr_weights_refused", weights_refused_total, "reason", refused.items())


def ledger_peers(view: View) -> Metric:
    """Other routers whose requests in flight this one counts; 0 also while the ledger is not shared."""
    peers = 0 if view.shared is None else view.shared.peers
    return GaugeMetricFamily("ccr_ledger_peers", ledger_peers.__doc__ or "", value=peers)


def ledger_age_seconds(view: View) -> Metric:
    """Time since other routers' requests were counted last; NaN while they are not."""
    age_s = None if view.shared is None else view.shared.age_s
    value = math.nan if age_s is None else age_s
    return GaugeMetricFamily("ccr_ledger_age_seconds", ledger_age_seconds.__doc__ or "", value=value)


def ledger_coverage(view: View) -> Metric:
    """Share of the traffic this router knows of: 1 while the ledger is shared, else 1 over `server.replicas`."""
    return GaugeMetricFamily("ccr_ledger_coverage_ratio", ledger_coverage.__doc__ or "", value=view.coverage)


def ledger_elsewhere(view: View) -> Metric:
    """Requests in flight by the ledgers of other routers, per node."""
    there = {} if view.shared is None else view.shared.elsewhere
    counts = [float(there.get(spec.id, 0)) for spec in view.fleet.specs]
    return _per_node("ccr_ledger_elsewhere_requests", ledger_elsewhere, view, counts)


def ledger_refused_total(view: View) -> Metric:
    """What other routers told and this one did not believe, by reason."""
    refused = {} if view.shared is None else view.shared.refused
    return _counter("ccr_ledger_refused", ledger_refused_total, "reason", refused.items())


def weights_on_trial(view: View) -> Metric:
    """1 while the weights in force are on trial."""
    on_trial = view.guardian is not None and view.guardian.state.on_trial
    return GaugeMetricFamily("ccr_weights_on_trial", weights_on_trial.__doc__ or "", value=float(on_trial))


def weights_stopped(view: View) -> Metric:
    """1 while the fallback serves until a person acts (`ccr learner resume`); alarm."""
    stopped = view.guardian is not None and view.guardian.board.control.is_stopped
    return GaugeMetricFamily("ccr_weights_stopped", weights_stopped.__doc__ or "", value=float(stopped))


def weights_vetoed(view: View) -> Metric:
    """Weights that are not taken again until a person clears them."""
    vetoes = 0 if view.guardian is None else len(view.guardian.board.control.vetoes)
    return GaugeMetricFamily("ccr_weights_vetoed", weights_vetoed.__doc__ or "", value=vetoes)


def rollbacks_total(view: View) -> Metric:
    """Weights that this router took out of force, by the figure that was too high; alarm when it grows."""
    rollbacks = {} if view.guardian is None else view.guardian.state.rollbacks
    return _counter("ccr_rollbacks", rollbacks_total, "figure", rollbacks.items())


def watched_ratio(view: View) -> Metric:
    """Share of the requests of the latest 5 s, by what is watched (docs/guardrails.md)."""
    return _by_figure(view, "ccr_watched_ratio", watched_ratio, "shares")


def watched_alarm_ratio(view: View) -> Metric:
    """How far what is watched is on its way to a rollback: 1 is there."""
    return _by_figure(view, "ccr_watched_alarm_ratio", watched_alarm_ratio, "sums")


def learner_paused(view: View) -> Metric:
    """1 while a person has paused publishing."""
    paused = view.guardian is not None and view.guardian.board.control.is_paused
    return GaugeMetricFamily("ccr_learner_paused", learner_paused.__doc__ or "", value=float(paused))


def store_up(view: View) -> Metric:
    """1 while the store answers, or none is configured; requests do not depend on it."""
    return GaugeMetricFamily("ccr_store_up", store_up.__doc__ or "", value=float(view.store_is_up))


def ready(view: View) -> Metric:
    """1 while /readyz says yes."""
    return GaugeMetricFamily("ccr_ready", ready.__doc__ or "", value=float(view.is_ready))


def build_info(_: View) -> Metric:
    """The version that runs."""
    return InfoMetricFamily("ccr_build", build_info.__doc__ or "", value={"version": __version__})


METRICS: Final[tuple[Function, ...]] = (
    requests_total, request_errors_total, tenant_requests_total,
    request_duration_seconds, request_ttft_seconds, request_tpot_seconds, tokens_total,
    decision_duration_seconds, score_duration, decisions_total,
    policy_info, policy_epoch, policy_fallback_total, policy_reloads_total, guard_override_total, holds_total,
    exploration_cost_seconds_total, exploration_budget_used,
    cold_starts_total, upstream_attempts_total, retries_total, retry_budget_exhausted_total,
    feedback_total, batched_requests_total,
    inflight_requests, node_qps, node_available, node_latency_seconds, node_queue, node_kv_used,
    node_memory_total, node_memory_used, gpu_memory_used, model_load_time,
    telemetry_age_seconds, telemetry_errors_total, ejections_total, panic,
    record_rows_total, record_dropped_total, record_bytes, record_segments_deleted_total, record_failures_total,
    feedback_taken_total, feedback_recovered_total, feedback_stored_total, feedback_dropped_total, feedback_waiting, feedback_spooled,
    weights_version, weights_epoch, weights_age_seconds, weights_stale, weights_refused_total,
    ledger_peers, ledger_age_seconds, ledger_coverage, ledger_elsewhere, ledger_refused_total,
    weights_on_trial, weights_stopped, weights_vetoed, rollbacks_total, watched_ratio, watched_alarm_ratio, learner_paused,
    store_up, ready, build_info,
)  # fmt: skip


class _Router(Collector):
    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        view = self._view()
        return (metric(view) for metric in METRICS)


class Exposition:
    """The page a Prometheus server reads.

    Args:
        view: what to look at, now.
    """

    def __init__(self, view: Callable[[], View]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Router(view))

    def page(self) -> bytes:
        """The page, in the text format."""
        return generate_latest(self._registry)


def _counter(name: str, function: Function, label: str, items: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(name, function.__doc__ or "", labels=[label])
    for value, number in items:
        family.add_metric([value], number)
    return family


def _by_figure(view: View, name: str, function: Function, field_name: str) -> Metric:
    family = GaugeMetricFamily(name, function.__doc__ or "", labels=["figure"])
    found: dict[str, float] = {} if view.guardian is None else getattr(view.guardian.state, field_name)
    for figure, value in found.items():
        family.add_metric([figure], value)
    return family


def _fed_counter(name: str, function: Function, view: View, field_name: str) -> Metric:
    value: int = getattr(view.fed or Fed(), field_name)
    return CounterMetricFamily(name, function.__doc__ or "", value=value)


def _per_node(name: str, function: Function, view: View, column: Iterable[float]) -> Metric:
    family = GaugeMetricFamily(name, function.__doc__ or "", labels=["node"])
    for spec, value in zip(view.fleet.specs, column, strict=True):
        family.add_metric([spec.id], float(value))
    return family


def _by_model(name: str, function: Function, by_model: ByModel) -> Metric:
    family = HistogramMetricFamily(name, function.__doc__ or "", labels=["model"])
    for model, histogram in by_model.histograms.items():
        family.add_metric([model], *_histogram(histogram))
    return family


def _histogram(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    cumulative, buckets = 0, []
    for bound, number in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
        cumulative += number
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(cumulative)))
    return buckets, histogram.total
