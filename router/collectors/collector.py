"""What a telemetry source is: which pages to fetch, and a pure function from their bytes to a `Reading`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ccr.errors import TelemetryError
from ccr.types import Reading
from router.prometheus_text import MALFORMED, TOO_LARGE

#: Every reason a reading can be refused for: the values of a metric's label. ``models`` stands for a page
#: beside the metrics that did not come; the reading is then given without it.
REASONS = (
    "unreachable", "timeout", "status", TOO_LARGE, MALFORMED, "no_metrics",
    "not_finite", "negative", "out_of_range", "models", "internal",
)  # fmt: skip


#: The node label that tells the port of the metrics page, where that is not the engine's usual one.
METRICS_PORT = "metrics_port"


@dataclass(frozen=True, slots=True)
class Page:
    """One thing to fetch from a node.

    Args:
        path: absolute path.
        method: GET, or POST with an empty body.
        port: where the engine serves it by default, when that is not the port of its API; 0: the same.
        every: fetched at every n-th poll; remembered in between.
        optional: whether there can be a reading without it.
    """

    path: str
    method: Literal["GET", "POST"] = "GET"
    port: int = 0
    every: int = 1
    optional: bool = False


#: Page -> body; a page that did not come is left out.
Bodies = Mapping[Page, bytes]


@dataclass(frozen=True, slots=True)
class Collector:
    """A telemetry source.

    Args:
        pages: what to fetch; the first is the metrics page, whose port the label :data:`METRICS_PORT` changes.
            (A second exporter beside the engine, such as DCGM's, is one more page with its own port.)
        read: bodies -> reading. Raises :class:`TelemetryError` and nothing else, whatever the bytes.
        recognise: for a source that first has to find out what runs there: bodies -> the one to go on with.
    """

    pages: tuple[Page, ...]
    read: Callable[[Bodies], Reading]
    recognise: "Callable[[Bodies], Collector] | None" = None

    @property
    def metrics(self) -> Page:
        """The page that carries the gauges."""
        return self.pages[0]


METRICS = Page("/metrics")
MODELS = Page("/v1/models", every=5, optional=True)


def expect_prefix(text: bytes, prefixes: tuple[bytes, ...]) -> None:
    """Refuse a page of another engine, or of none.

    A page that is empty passes: SGLang and TGI publish a series only once something has happened to it, so
    a node that has just started has none, and refusing it would keep its first request away for ever.

    Raises:
        TelemetryError: ``no_metrics``.
    """
    if text.strip() and not any(prefix in text for prefix in prefixes):
        names = ", ".join(prefix.decode() for prefix in prefixes)
        raise TelemetryError("no_metrics", f"no series begins with {names}; is `engine` of the node right?")
