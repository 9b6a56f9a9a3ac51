import inspect

import pytest

from ccr import metrics
from ccr.types import Fleet, NodeSpec

MEASURED = {
    metrics.node_qps: "qps",
    metrics.inflight: "inflight",
    metrics.queue_length: "waiting",
    metrics.latency_s: "latency_s",
    metrics.gpu_free_mem: "gpu_free_gib",
    metrics.gpu_total_mem: "gpu_total_gib",
    metrics.kv_used: "kv_used",
    metrics.telemetry_age_s: "telemetry_age_s",
}


@pytest.mark.parametrize(("measure", "column"), MEASURED.items(), ids=lambda x: getattr(x, "__name__", x))
def test_a_metric_is_the_column_of_its_own_node(measure, column):
    specs = [NodeSpec(f"n{i}", "http://n:1") for i in range(3)]
    fleet = Fleet.of([{"spec": spec, column: 1.5 + i} for i, spec in enumerate(specs)])

    measured = [measure(node) for node in fleet.nodes]

    assert measured == [1.5, 2.5, 3.5]
    assert {type(value) for value in measured} == {float}


def test_every_metric_is_in_the_table_above():
    defined = {
        f for _, f in inspect.getmembers(metrics, inspect.isfunction) if f.__module__ == metrics.__name__
    }

    assert defined == set(MEASURED)
