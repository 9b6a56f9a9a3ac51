"""Score nodes with an operator's own ``score(node, req)``."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Final, NamedTuple

import numpy as np

import ccr.metrics  # noqa: F401 - a script that says `import ccr` may say `ccr.metrics.node_qps(node)`
from ccr.errors import ScriptError
from ccr.picker import Greedy, Picker
from ccr.policies.script_gate import SIGNATURES, check_script
from ccr.policies.time_guard import GUARD, TIMED_OUT, ScriptTimeoutError
from ccr.types import Fleet, Node, Request, Scores

# A decision among 16 nodes takes a sane script 10-30 us; at 5 ms the router is felt by every other request.
LIMIT_S: Final = 0.005
# The body of a module runs once per reload; importing `statistics` for the first time takes 20 ms.
BODY_LIMIT_S: Final = 0.25
#: Longest a script may let a batch wait; a hint in seconds by mistake must not hold requests for minutes.
LONGEST_WAIT_S: Final = 0.1

_NUMBERS = frozenset({float, int, bool})


class Header(Mapping[str, str]):
    """Request headers as a script sees them: read-only, names in any case.

    ``X-Model-Name`` is always there and holds the resolved model id, whatever the client sent, so that
    ``req.header.get("X-Model-Name") in node.loaded_models`` says what it seems to say.
    """

    __slots__ = ("_headers", "_model")

    def __init__(self, headers: Mapping[str, str], model: str) -> None:
        self._headers = headers
        self._model = model

    def __getitem__(self, name: str) -> str:
        lower = name.lower()
        return self._model if lower == _MODEL_HEADER else self._headers[lower]

    def __iter__(self) -> Iterator[str]:
        yield _MODEL_HEADER
        yield from (name for name in self._headers if name != _MODEL_HEADER)

    def __len__(self) -> int:
        return len(self._headers) + (_MODEL_HEADER not in self._headers)


_MODEL_HEADER = "x-model-name"


class ScriptRequest(NamedTuple):
    """The request as a script sees it, read-only.

    Attributes:
        header: the client's headers, without credentials.
        model: resolved model id, the key of ``node.loaded_models``.
        name: the model's name without its version.
        version: the resolved version; empty when the model has none.
        session: conversation id; empty when unknown.
        priority: 0 is normal, higher is more urgent.
        prompt_tokens: prompt length in tokens.
        output_tokens: the client's limit on generated tokens; 0 when it gave none.
        tenant: name of the API key; empty when keys are off.
    """

    header: Header
    model: str
    name: str
    version: str
    session: str
    priority: int
    prompt_tokens: int
    output_tokens: int
    tenant: str

    @classmethod
    def of(cls, request: Request) -> "ScriptRequest":
        """The view of ``request``."""
        return cls(
            Header(request.headers, request.model), request.model, request.name, request.version,
            request.session, request.priority, request.prompt_tokens, request.output_tokens, request.tenant,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScriptPolicy:
    """An operator's ``score(node, req)``, called once per node; higher preferred.

    A script that fails on one node gives no scores at all: a node must not starve because of a mistake
    in the script, so the fallback policy decides the whole request.

    Args:
        score: the script's function.
        path: of its file, as in messages.
        sha256: of its source, hexadecimal; for the audit record.
        batch_hint: the script's function, in milliseconds; ``None`` when it has none.
        limit_s: wall-clock limit of one decision, all nodes together.
    """

    score: Callable[[Node, ScriptRequest], object]
    path: str
    sha256: str
    batch_hint: Callable[[list[ScriptRequest]], object] | None = None
    limit_s: float = LIMIT_S
    name: str = "script"
    picker: Picker = field(default_factory=Greedy)

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """What the script returns, all finite, shape ``(len(fleet),)``.

        Raises:
            ScriptError: naming the node and the reason, if the script raises, or returns anything but a
                finite number.
            ScriptTimeoutError: if all nodes together take longer than ``limit_s``.
        """
        nodes = fleet.nodes
        values: list[object] = []
        try:
            GUARD.call(self.limit_s, _collect, self.score, nodes, ScriptRequest.of(request), values)
        except (Exception, SystemExit) as error:
            unfinished = f" for node {nodes[len(values)].id!r}" if len(values) < len(nodes) else ""
            raise _failure(error, self.path, f"score{unfinished}") from error
        if not _all_finite(values):
            _refuse_first(values, nodes, self.path)
        return np.array(values, dtype=np.float64)


def batch_hint_s(
    policy: ScriptPolicy, requests: Sequence[Request], report: Callable[[ScriptError], None]
) -> float:
    """Seconds this batch may still wait for company, by the script; 0 where it has no ``batch_hint``.

    Args:
        policy: whose script to ask.
        requests: of one model, in order of arrival.
        report: called with what went wrong when the script fails; the batch then waits no longer.

    Returns:
        In [0, ``LONGEST_WAIT_S``]; what the script wants beyond is cut.
    """
    if policy.batch_hint is None:
        return 0.0
    views = [ScriptRequest.of(request) for request in requests]
    try:
        wait_ms = GUARD.call(policy.limit_s, policy.batch_hint, views)
    except (Exception, SystemExit) as error:
        report(_failure(error, policy.path, "batch_hint"))
        return 0.0
    if problem := _not_a_number(wait_ms):
        report(ScriptError(f"{policy.path}: batch_hint returned {problem}; return milliseconds"))
        return 0.0
    return min(max(float(wait_ms) / 1e3, 0.0), LONGEST_WAIT_S)  # type: ignore[arg-type]  # a number, as just checked


def compile_script(source: str, filename: str) -> ScriptPolicy:
    """The policy that runs ``source``.

    Args:
        source: the script's text.
        filename: where it came from, for messages.

    Raises:
        ScriptError: if the gate refuses it, or its module body fails.
    """
    tree = check_script(source, filename)
    namespace: dict[str, object] = {"__name__": "ccr_script", "__file__": filename}
    try:
        body = compile(tree, filename, "exec", dont_inherit=True)
        GUARD.call(BODY_LIMIT_S, exec, body, namespace)
    except SyntaxError as error:  # what only the compiler sees, such as a return outside a function
        raise ScriptError(f"{filename}:{error.lineno or 1}: {error.msg}; correct the syntax") from error
    except (Exception, SystemExit) as error:
        raise _failure(error, filename, "the module body") from error
    functions = {name: namespace.get(name) for name in SIGNATURES}
    for name, function in functions.items():
        if function is not None and not isinstance(function, FunctionType):
            raise ScriptError(
                f"{filename}: {name} is overwritten with a {type(function).__name__}; rename that one"
            )
    digest = hashlib.sha256(source.encode()).hexdigest()
    return ScriptPolicy(functions["score"], filename, digest, functions["batch_hint"])  # type: ignore[arg-type]  # checked


@dataclass(frozen=True, slots=True)
class Strikes:
    """Recent timeouts of one script: three within a minute and it is out.

    A policy remembers nothing, so the one who runs it counts: ``strikes = strikes.after(decision.fallback,
    now_s)`` once per decision, and back to the script before when ``strikes.out``. A busy machine can hold
    any script up once in a while; only timeouts close together say something about the script.

    Args:
        times_s: moments of the latest timeouts, oldest first.
        limit: how many are one too many.
        window_s: how long one counts.
    """

    times_s: tuple[float, ...] = ()
    limit: int = 3
    window_s: float = 60.0

    def after(self, fallback: str, now_s: float) -> "Strikes":
        """The count once a decision with this ``fallback`` was seen; itself, unless that tells of a timeout."""
        if not fallback.startswith(TIMED_OUT):
            return self
        recent = tuple(at_s for at_s in self.times_s if now_s - at_s < self.window_s)
        return replace(self, times_s=(*recent, now_s))

    @property
    def out(self) -> bool:
        """Whether the script is condemned."""
        return len(self.times_s) >= self.limit


def _collect(
    score: Callable[[Node, ScriptRequest], object],
    nodes: Sequence[Node],
    view: ScriptRequest,
    values: list[object],
) -> None:
    """Scores appended one by one, so that their number tells which node a failure was about."""
    for node in nodes:
        values.append(score(node, view))  # noqa: PERF401 - see above


def _all_finite(values: list[object]) -> bool:
    """Whether every value is certainly a finite number; a few tests in C for the usual case."""
    try:
        return _NUMBERS.issuperset(map(type, values)) and math.isfinite(sum(values))  # type: ignore[arg-type]  # numbers
    except OverflowError:
        return False


def _refuse_first(values: list[object], nodes: Sequence[Node], path: str) -> None:
    for value, node in zip(values, nodes, strict=True):
        if problem := _not_a_number(value):
            raise ScriptError(
                f"{path}: score returned {problem} for node {node.id!r}; return a finite number"
            )


def _not_a_number(value: object) -> str:
    """What is wrong with it, in words; empty for a finite number."""
    if type(value) not in _NUMBERS:
        return "None" if value is None else f"a {type(value).__name__}"
    try:
        number = float(value)  # type: ignore[arg-type]  # one of _NUMBERS
    except OverflowError:
        return "an integer beyond the range of float"
    return "" if math.isfinite(number) else str(number)


def _failure(error: BaseException, path: str, doing: str) -> ScriptError:
    """The error in terms of the script: its line, what was called, what was raised."""
    if isinstance(error, ScriptTimeoutError):
        cut = error.__cause__
        place = f"{path}:{_line(cut, path)}" if cut is not None and _line(cut, path) else path
        return ScriptTimeoutError(error.limit_s, f"{place} in {doing}")
    if isinstance(error, ScriptError):
        return error
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ScriptError(f"{path}:{_line(error, path) or 1}: {doing} raised {detail}")


def _line(error: BaseException, path: str) -> int:
    """Where in the script it was raised or passed through last; 0 when nowhere."""
    line, step = 0, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == path:
            line = step.tb_lineno
        step = step.tb_next
    return line
