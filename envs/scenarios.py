"""The scenarios policies are compared on, and the suites they make up.

Rates are per node. On the default mix an A10 node that keeps its models serves about 1.8 requests per second before its
queue grows; 2.8 and 4.2 are overload. Other mixes are compared by their work (:mod:`envs.work`), not by their rate. What is named ``train-...`` is for tuning and learning: other models' shares, rates and fleets than
those of the comparison, and other seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from ccr.errors import ConfigError, TraceError
from ccr.timing import GPUS, ModelSpec, kv_tokens
from envs.catalogue import catalogue
from envs.scenario import Arrivals, NodePlan, Scenario, Trouble
from envs.traces.synth import CLASSES, Workload, draw
from envs.traces.trace import Trace, read
from envs.work import nodes_for

#: Ids in the order of their popularity at the start; two of them fit on an A10 at a time.
MODELS: Final = (
    "chat-7b@1", "code-7b@1", "support-8b@1", "chat-7b@2", "summary-7b@1", "extract-7b@1", "translate-6b@1", "code-7b@2",
)  # fmt: skip
DURATION_S: Final = 240.0
TRACE_PREFIX: Final = "trace:"


def arrivals_of(trace: Trace, models: Sequence[str]) -> Arrivals:
    """The traffic of a trace; its models have to be among ``models``.

    Raises:
        ConfigError: if the trace asks for others.
    """
    rows = {model: row for row, model in enumerate(models)}
    missing = [model for model in trace.models if model not in rows]
    if missing:
        raise ConfigError(f"the trace asks for {', '.join(missing)}; the fleet has {', '.join(models)}")
    by_index = np.array([rows[model] for model in trace.models], dtype=np.int64)
    return Arrivals(
        t=np.array(trace.t),
        model=by_index[trace.model],
        prompt_tokens=np.maximum(trace.prompt_tokens, 1),
        output_tokens=np.maximum(trace.output_tokens, 1),
        session=np.array(trace.session),
        prefix_tokens=np.maximum(trace.prefix_tokens, 0),
        priority=np.array(trace.priority),
        after=np.full(len(trace), -1, dtype=np.int64),
    )


def drawn(workload: Workload, models: Sequence[str]) -> Callable[[int], Arrivals]:
    """Traffic drawn from a workload by the seed."""
    return lambda seed: arrivals_of(draw(workload, seed), models)


def clients(
    models: Sequence[str],
    *,
    count: int,
    requests: int,
    think_s: float,
    prompt: int,
    output: int,
    zipf: float = 1.0,
) -> Callable[[int], Arrivals]:
    """Closed-loop traffic: each client thinks, asks, waits for the answer, and thinks again.

    Args:
        models: ids in order of popularity.
        count: clients.
        requests: of each client.
        think_s: mean time between an answer and the next question, exponential.
        prompt: mean prompt tokens, lognormal with sigma 0.3; likewise ``output``.
        output: mean output tokens.
        zipf: popularity falls as one over rank to this power.
    """

    def arrivals(seed: int) -> Arrivals:
        rng = np.random.Generator(np.random.Philox(key=[seed, 0xC11E]))
        r = count * requests
        share = 1.0 / np.arange(1, len(models) + 1) ** zipf
        j = np.arange(r)  # request k of client c is c + k * count
        return Arrivals(
            t=rng.exponential(think_s, r),
            model=rng.choice(len(models), r, p=share / share.sum()).astype(np.int64),
            prompt_tokens=np.maximum(rng.lognormal(np.log(prompt), 0.3, r), 1.0).astype(np.int64),
            output_tokens=np.maximum(rng.lognormal(np.log(output), 0.3, r), 1.0).astype(np.int64),
            session=np.full(r, -1, dtype=np.int64),
            prefix_tokens=np.zeros(r, dtype=np.int64),
            priority=np.zeros(r, dtype=np.int64),
            after=np.where(j < count, -1, j - count),
        )

    return arrivals


def fleet(count: int, models: Sequence[str], *, cards: Sequence[str] = ("A10",)) -> tuple[NodePlan, ...]:
    """Nodes with two models warm on each, more copies of what is more popular; cards are dealt in turn."""
    share = 1.0 / np.arange(1, len(models) + 1)
    slots = 2 * count
    wanted = share / share.sum() * slots
    copies = np.floor(wanted).astype(int)
    for row in np.argsort(copies - wanted, kind="stable")[: slots - int(copies.sum())]:
        copies[row] += 1
    dealt = [models[row] for row in range(len(models)) for _ in range(min(int(copies[row]), count))]
    warm: list[list[str]] = [[] for _ in range(count)]
    for k, model in enumerate(dealt):
        free = [i for i in range(count) if len(warm[i]) < 2 and model not in warm[i]]
        if free:
            warm[min(free, key=lambda i: (len(warm[i]), (i - k) % count))].append(model)
    return tuple(
        NodePlan(id=f"{cards[i % len(cards)].lower()}-{i}", gpu=cards[i % len(cards)], warm=tuple(warm[i]))
        for i in range(count)
    )


def plain(
    name: str,
    about: str,
    *,
    nodes: int = 8,
    rate: float = 1.8,
    models: Sequence[str] = MODELS,
    cards: Sequence[str] = ("A10",),
    workload: Workload | None = None,
    duration_s: float = DURATION_S,
) -> Scenario:
    """A scenario with the default fleet and mix, at ``rate`` requests per second and node."""
    asked = replace(workload or Workload(), models=tuple(models), rate=rate * nodes, duration_s=duration_s)
    specs = _specs(
        [*models, *(switch.after for switch in asked.switches)], releases=asked.release_every_s > 0
    )
    return Scenario(
        name=name,
        about=about,
        nodes=fleet(nodes, models, cards=cards),
        models=specs,
        arrivals=drawn(asked, tuple(specs)),
    )


def _specs(models: Sequence[str], *, releases: bool = False) -> dict[str, ModelSpec]:
    """Architectures by id; a version that is not in the catalogue has the shape of the model's first."""
    shapes = {model.partition("@")[0]: spec for model, spec in reversed(catalogue().items())}
    ids = list(dict.fromkeys(models))
    if releases:
        names = dict.fromkeys(model.partition("@")[0] for model in models)
        ids += [f"{name}@{v}" for name in names for v in range(1, 13) if f"{name}@{v}" not in ids]
    return {model: shapes[model.partition("@")[0]] for model in ids}


def _hidden(scenario: Scenario, scales: Sequence[float]) -> Scenario:
    nodes = tuple(
        replace(node, bw_scale=scales[i % len(scales)], overhead_s=0.02 + 0.04 * (i % 3), is_hidden=True)
        for i, node in enumerate(scenario.nodes)
    )
    return replace(scenario, nodes=nodes)


_LONG_PROMPTS: Final = {
    name: replace(lengths, prompt_median=2200.0, prompt_sigma=0.4, output_median=30.0, turns=1.0)
    for name, lengths in CLASSES.items()
}
_ARTICLE_MODELS: Final = ("chat-7b@1", "code-7b@1", "support-8b@1", "summary-7b@1")


def _article() -> Scenario:
    nodes = tuple(
        NodePlan(id=f"a10-{i}", warm=(model,), overhead_s=0.02) for i, model in enumerate(_ARTICLE_MODELS)
    )
    return Scenario(
        name="article",
        about="Four A10 with one model each, 50 clients with 0.25 s of think time, 32 + 8 tokens: the founding article's load.",
        nodes=nodes,
        models=_specs(_ARTICLE_MODELS),
        arrivals=clients(
            _ARTICLE_MODELS, count=50, requests=120, think_s=0.25, prompt=32, output=8, zipf=0.5
        ),
        warmup_s=5.0,
    )


def _one_model() -> Scenario:
    scenario = plain(
        "steady",
        "Four equal nodes, one model warm on all of them, Poisson arrivals: nobody should lose here.",
        nodes=4, rate=1.5, models=("chat-7b@1",), workload=Workload(cv=1.0, drift=0.0),
    )  # fmt: skip
    return replace(scenario, nodes=tuple(replace(node, warm=("chat-7b@1",)) for node in scenario.nodes))


_EVALUATED: Final = (
    _one_model(),
    plain("medium", "Eight A10, eight models, bursts: an ordinary afternoon.", rate=1.0),
    plain("high", "The same fleet close to saturation.", rate=1.5),
    plain(
        "heterogeneous",
        "Four A10, two L4 and two A100 (scaled, not measured).",
        cards=("A10", "A10", "L4", "A100-80G"), rate=1.5,
    ),
    plain(
        "bursty",
        "Models flare up to five times their rate for seconds.",
        rate=0.9, workload=Workload(cv=4.0, burst_factor=5.0, burst_s=12.0),
    ),
    plain(
        "drift",
        "What is popular changes every 30 s.",
        rate=1.0, workload=Workload(drift=0.8, swaps=2, drift_s=30.0),
    ),
    plain(
        "churn",
        "A new version of some model every 40 s, taking over its traffic within 20 s.",
        rate=0.9, workload=Workload(release_every_s=40.0, release_ramp_s=20.0),
    ),
    replace(
        plain("straggler", "One node of eight takes four times as long for two minutes.", rate=1.0),
        troubles=(Trouble("slow", 2, 60.0, 180.0, 4.0),),
    ),
    replace(
        plain("crash", "One node of eight dies for 40 s and comes back empty.", rate=1.0),
        troubles=(Trouble("crash", 2, 80.0, 120.0),),
    ),
    replace(
        plain("blind", "The telemetry of three nodes of eight stands still for two minutes.", rate=1.1),
        troubles=tuple(Trouble("freeze", node, 60.0, 180.0) for node in (1, 4, 6)),
    ),
    plain("overload-2.8", "2.8 requests per second and node: the queue grows.", rate=2.8),
    plain("overload-4.2", "4.2 requests per second and node: far too much.", rate=4.2),
    plain(
        "prefill-heavy",
        "Prompts of 2,200 tokens, answers of 30.",
        rate=0.8, workload=Workload(classes=_LONG_PROMPTS),
    ),
    replace(
        plain("replicas-4", "Four routers that do not share their ledgers.", rate=1.2), replicas=4
    ),
    replace(
        plain("replicas-8", "Eight routers that do not share their ledgers.", rate=1.2), replicas=8
    ),
    _hidden(
        plain("hidden-speeds", "Nodes from half to one and a half times the speed the routers believe.", rate=1.0),
        (0.5, 0.75, 1.0, 1.5),
    ),
    replace(
        _hidden(
            plain("hidden-replicas-4", "Hidden speeds, and four routers with their own ledgers.", rate=1.0),
            (0.5, 0.75, 1.0, 1.5),
        ),
        replicas=4,
    ),
    plain("fleet-2", "Two nodes, three models.", nodes=2, rate=1.2, models=MODELS[:3]),
    plain("fleet-32", "32 nodes.", nodes=32, rate=1.4, duration_s=120.0),
    plain("fleet-128", "128 nodes.", nodes=128, rate=1.4, duration_s=90.0),
    _article(),
    replace(
        _article(), name="article-batched",
        about="The same, and routers hold requests of a model for each other up to 10 ms, in fours.",
        batch_wait_s=0.01,
    ),
)  # fmt: skip

_TRAINED: Final = (
    plain("train-low", "Training: six A10, light.", nodes=6, rate=0.6, models=MODELS[:6]),
    plain("train-medium", "Training: ten A10.", nodes=10, rate=1.1),
    plain("train-high", "Training: six A10 near saturation.", nodes=6, rate=1.5, models=MODELS[1:]),
    plain("train-over", "Training: overload.", nodes=8, rate=2.4, models=MODELS[2:]),
    plain(
        "train-mixed", "Training: A10 and A100, drift.",
        nodes=8, rate=1.4, cards=("A10", "A10", "A10", "A100-80G"), workload=Workload(drift=0.6, drift_s=40.0),
    ),
    plain(
        "train-churn", "Training: new versions and bursts.",
        nodes=8, rate=0.9, workload=Workload(release_every_s=60.0, burst_factor=3.0),
    ),
    replace(plain("train-replicas", "Training: three routers.", nodes=8, rate=1.2), replicas=3),
)  # fmt: skip

#: Name -> scenario.
SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {scenario.name: scenario for scenario in (*_EVALUATED, *_TRAINED)}
)
#: Suite -> its scenarios.
SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "smoke": ("steady", "medium", "high", "straggler"),
        "full": tuple(scenario.name for scenario in _EVALUATED),
        "train": tuple(scenario.name for scenario in _TRAINED),
    }
)


def scenario_of(name: str) -> Scenario:
    """A scenario of the table, or ``trace:FILE``: a recorded or imported trace on as many A10 as it needs.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name.startswith(TRACE_PREFIX):
        return of_trace(Path(name.removeprefix(TRACE_PREFIX)))
    if name not in SCENARIOS:
        raise ConfigError(f"no scenario is called {name!r}; there are {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def _served_by(trace: Trace) -> int:
    """Nodes that answered requests when the trace was recorded; 0 if it was not."""
    return len(set(trace.outcomes.node) - {""}) if trace.outcomes is not None else 0


def of_trace(path: Path, nodes: int = 0) -> Scenario:
    """The arrivals of a trace; models that are not in the catalogue take its shapes in turn.

    Args:
        path: the trace.
        nodes: A10 nodes; 0: as many as served it if the trace tells, else :func:`envs.work.nodes_for`.

    Raises:
        TraceError: if a request never fits on a node.
    """
    trace = read(path)
    specs = shapes_of(trace)
    _refuse_what_never_fits(trace, specs, path)
    arrivals = arrivals_of(trace, tuple(specs))
    count = nodes or _served_by(trace) or nodes_for(arrivals, specs)
    popular = [trace.models[row] for row in np.argsort(-np.bincount(trace.model, minlength=len(specs)))]
    return Scenario(
        name=path.name,
        about=f"{len(trace)} requests of {path.name} on {count} A10.",
        nodes=fleet(count, popular),
        models=specs,
        arrivals=lambda seed: arrivals,  # noqa: ARG005 - a trace is what it is
        warmup_s=min(30.0, 0.1 * trace.span_s),
    )


def shapes_of(trace: Trace) -> dict[str, ModelSpec]:
    """Architectures of the models of a trace; those that are not in the catalogue take its shapes in turn."""
    shapes = catalogue()
    known = {model.partition("@")[0]: spec for model, spec in reversed(shapes.items())}
    in_turn = list(dict.fromkeys(shapes.values()))
    return {
        model: shapes.get(model) or known.get(model.partition("@")[0]) or in_turn[k % len(in_turn)]
        for k, model in enumerate(trace.models)
    }


def _refuse_what_never_fits(trace: Trace, specs: Mapping[str, ModelSpec], path: Path) -> None:
    most = np.array([kv_tokens(GPUS["A10"], [spec]) for spec in specs.values()])
    too_long = trace.prompt_tokens + trace.output_tokens > most[trace.model]
    if too_long.any():
        least = int(most[trace.model[too_long]].min())
        raise TraceError(
            f"{path}: {int(too_long.sum())} of {len(trace)} requests are longer than the KV cache of an A10 holds beside "
            f"their model (at most {least} tokens); leave them out with `ccr traces cut {path.name} -o OUT --most-tokens {least}`"
        )
