"""Reads every node's telemetry again and again, one task per node."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ccr import log
from ccr.errors import TelemetryError
from ccr.hashing import unit_hash
from ccr.types import NodeSpec, Reading
from router.clock import WALL, Clock
from router.collectors import COLLECTORS
from router.collectors.collector import METRICS_PORT, Collector, Page
from router.collectors.fetch import Fetch, HttpFetch
from router.prometheus_text import MAX_BYTES

#: (node id, reading, now)
OnReading = Callable[[str, Reading, float], None]
#: (node id, one of `REASONS`)
OnError = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, and how patient.

    Args:
        interval_s: from the start of one poll of a node to the start of the next.
        timeout_s: for each page, on the wall; pages of one poll are fetched side by side.
        backoff_cap_s: the interval of a failing node doubles up to this; one success ends it.
    """

    interval_s: float = 0.5
    timeout_s: float = 1.0
    backoff_cap_s: float = 5.0

    def delay_s(self, failures: int) -> float:
        """The interval after so many failures in a row."""
        return max(self.interval_s, min(self.interval_s * 2.0 ** min(failures, 16), self.backoff_cap_s))


@dataclass(slots=True)
class _Watched:
    """A node under observation."""

    spec: NodeSpec
    collector: Collector
    task: "asyncio.Task[None] | None" = None
    polls: int = 0
    failures: int = 0
    remembered: dict[Page, bytes] = field(default_factory=dict)
    page_hash: int = 0
    changed_s: float = 0.0


class Poller:
    """Polls the nodes it was given and tells what it read.

    ``errors`` counts by reason. The reason ``models`` is not a failed poll: the list of models did not come,
    and the reading was given without it.

    Args:
        on_reading: called with each reading, in the loop's thread.
        on_error: called with each failure.
        fetch: gets a page; its own HTTP session, closed with the poller, if ``None``.
        pace: intervals and timeouts.
        clock: paces the polls and stamps the readings.
    """

    def __init__(
        self,
        on_reading: OnReading,
        on_error: OnError,
        fetch: Fetch | None = None,
        pace: Pace = Pace(),
        clock: Clock = WALL,
    ) -> None:
        self.errors: Counter[str] = Counter()
        self._on_reading = on_reading
        self._on_error = on_error
        self._own_fetch: HttpFetch | None = None
        if fetch is None:
            fetch = self._own_fetch = HttpFetch()
        self._fetch: Fetch = fetch
        self._pace = pace
        self._clock = clock
        self._log = log.get(__name__)
        self._watched: dict[str, _Watched] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def set_nodes(self, specs: Iterable[NodeSpec]) -> None:
        """Poll exactly these from now on; nodes that did not change are not disturbed."""
        wanted = {spec.id: spec for spec in specs}
        for node_id in [id_ for id_, node in self._watched.items() if wanted.get(id_) != node.spec]:
            self._forget(node_id)
        for spec in wanted.values():
            if spec.id not in self._watched:
                self._begin(spec)

    def unchanged_s(self, node_id: str) -> float:
        """For how long the metrics page has been the same, byte for byte; 0 for an unknown node.

        Alone this proves nothing: an idle engine repeats itself. While requests are in flight at the node,
        a page that does not change for seconds is frozen.
        """
        node = self._watched.get(node_id)
        return self._clock.now_s() - node.changed_s if node is not None and node.polls else 0.0

    async def close(self) -> None:
        """End every task and connection; nothing is told afterwards."""
        self.set_nodes(())
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._own_fetch is not None:
            await self._own_fetch.close()

    def _begin(self, spec: NodeSpec) -> None:
        node = _Watched(spec, COLLECTORS[spec.engine])
        self._watched[spec.id] = node
        node.task = asyncio.create_task(self._watch(node), name=f"telemetry {spec.id}")

    def _forget(self, node_id: str) -> None:
        task = self._watched.pop(node_id).task
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _watch(self, node: _Watched) -> None:
        # The nodes of a fleet are asked at different moments of the interval.
        await self._clock.sleep(unit_hash(node.spec.id) * self._pace.interval_s)
        while True:
            started_s = self._clock.now_s()
            await self._poll(node)
            due_s = started_s + self._pace.delay_s(node.failures)
            await self._clock.sleep(max(due_s - self._clock.now_s(), 0.0))

    async def _poll(self, node: _Watched) -> None:
        try:
            reading = await self._reading(node)
            self._on_reading(node.spec.id, reading, self._clock.now_s())
        except TelemetryError as error:
            self._failed(node, error.reason, str(error))
        except Exception:
            # A fault of ours, here or in the listener. It must not end the observation of the node.
            self._log.exception("telemetry.crashed", node=node.spec.id)
            self._failed(node, "internal", "see the log")
        else:
            if node.failures:
                self._log.info("telemetry.recovered", node=node.spec.id, failures=node.failures)
            node.failures = 0

    def _failed(self, node: _Watched, reason: str, detail: str) -> None:
        if not node.failures:
            self._log.warning("telemetry.failed", node=node.spec.id, reason=reason, detail=detail)
        node.failures += 1
        node.polls = 0
        node.remembered.clear()  # whoever answers next may be a new process
        self._count(node, reason)

    def _count(self, node: _Watched, reason: str) -> None:
        self.errors[reason] += 1
        self._on_error(node.spec.id, reason)

    async def _reading(self, node: _Watched) -> Reading:
        bodies = await self._bodies(node, node.collector, {})
        recognise = COLLECTORS[node.spec.engine].recognise
        if recognise is not None:
            recognised = recognise(bodies)
            if recognised is not node.collector:
                node.collector, node.polls = recognised, 0
                bodies = await self._bodies(node, recognised, bodies)
        self._note_change(node, bodies[node.collector.metrics])
        node.polls += 1
        return node.collector.read(bodies)

    async def _bodies(
        self, node: _Watched, collector: Collector, have: Mapping[Page, bytes]
    ) -> dict[Page, bytes]:
        """The pages of the collector: those at hand, those due now, and those remembered."""
        due = [page for page in collector.pages if page not in have and node.polls % page.every == 0]
        answers = await asyncio.gather(*(self._get(node, page) for page in due), return_exceptions=True)
        fresh: dict[Page, bytes] = {}
        for page, answer in zip(due, answers, strict=True):
            node.remembered.pop(page, None)
            if isinstance(answer, bytes):
                fresh[page] = answer
            elif not (page.optional and isinstance(answer, TelemetryError)):
                raise answer
        node.remembered.update({page: body for page, body in fresh.items() if page.every > 1})
        if len(fresh) < len(due):
            self._count(node, "models")
        return {**node.remembered, **have, **fresh}

    async def _get(self, node: _Watched, page: Page) -> bytes:
        return await self._fetch(_url(node, page), page.method, self._pace.timeout_s, MAX_BYTES)

    def _note_change(self, node: _Watched, body: bytes) -> None:
        page_hash = hash(body)
        if page_hash != node.page_hash or not node.polls:
            node.page_hash, node.changed_s = page_hash, self._clock.now_s()


def _url(node: _Watched, page: Page) -> str:
    label = node.spec.labels.get(METRICS_PORT) if page == node.collector.metrics else None
    port = int(label) if label else page.port
    if not port:
        return node.spec.url + page.path
    parts = urlsplit(node.spec.url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{port}{page.path}"
