"""Public request traces as days: imported, cut into stretches that do not overlap, and put on a fleet that fits their work."""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.claims.days import Windows
from ccr.errors import TraceError
from ccr.timing import GPUS, kv_tokens
from envs.scenarios import arrivals_of, shapes_of
from envs.traces.convert import Cut, cut_trace, import_trace
from envs.traces.reader import Wishes
from envs.traces.trace import Trace, read
from envs.work import nodes_for

MOST: Final = 72
_LONGEST_S: Final = 300.0
_SHORTEST_S: Final = 60.0
_LEAST_REQUESTS: Final = 50
_BLOCK_TOKENS: Final = 512  # Mooncake's, for a file that does not say.


class Imported(NamedTuple):
    """What a directory of traces gave.

    Args:
        windows: of each trace that can be simulated.
        left_out: file -> why it cannot.
    """

    windows: tuple[Windows, ...]
    left_out: dict[str, str]


def imported(directory: Path, into: Path) -> Imported:
    """Every trace of a directory.

    Args:
        directory: files in any format of ``ccr traces import``.
        into: where the stretches are written.
    """
    windows, left_out = [], {}
    for path in sorted(each for each in directory.iterdir() if each.is_file()):
        try:
            windows.append(_windows(path, into))
        except TraceError as error:
            left_out[path.name] = str(error).replace(str(directory), "").partition(". ")[0].lstrip("/")
    return Imported(tuple(windows), left_out)


def _windows(path: Path, into: Path) -> Windows:
    name = path.name.partition(".")[0]
    whole, fits = into / f"{name}.csv", into / f"{name}-fits.csv"
    import_trace("auto", path, whole, Wishes(block_tokens=_BLOCK_TOKENS))
    most = min(kv_tokens(GPUS["A10"], [spec]) for spec in shapes_of(read(whole)).values())
    cut_trace(whole, fits, Cut(most_tokens=most))
    trace = read(fits)
    specs = shapes_of(trace)
    nodes = nodes_for(arrivals_of(trace, tuple(specs)), specs)
    files = tuple(_stretches(name, fits, trace, into))
    if not files:
        raise TraceError(f"{path.name} is too short")
    return Windows(name, files, nodes, _about(trace, len(files)))


def _stretches(name: str, path: Path, trace: Trace, into: Path) -> list[Path]:
    length_s = min(_LONGEST_S, max(_SHORTEST_S, trace.span_s / MOST))
    count = min(MOST, int(trace.span_s / length_s))
    found = []
    for k in range(count):
        from_s = k * trace.span_s / count
        begin, end = np.searchsorted(trace.t, [from_s, from_s + length_s])
        if end - begin >= _LEAST_REQUESTS:
            found.append(into / f"{name}-{k}.csv")
            cut_trace(path, found[-1], Cut(from_s=from_s, until_s=from_s + length_s))
    return found


def _about(trace: Trace, stretches: int) -> str:
    prompt, output = int(np.median(trace.prompt_tokens)), int(np.median(trace.output_tokens))
    models = "one model" if len(trace.models) == 1 else f"{len(trace.models)} models"
    return (
        f"{models}, {len(trace) / trace.span_s:.1f} requests per second, median {prompt} + {output} tokens, "
        f"{stretches} stretches of {min(_LONGEST_S, max(_SHORTEST_S, trace.span_s / MOST)):.0f} s"
    )
