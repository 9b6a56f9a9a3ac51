"""Refuse an operator script that cannot work, would stall the router, or could not be replayed.

The gate reads the script, it does not run it. It guards against accidents: Python has no in-process
sandbox, and who may write the script may run code as the router (``docs/operator-scripts.md``).
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ccr.errors import ScriptError

#: Modules a script may import. All are free of clocks, dice, sockets and files.
ALLOWED_IMPORTS = frozenset(
    {
        "ccr", "ccr.metrics", "collections", "collections.abc", "dataclasses", "enum", "math",
        "re", "statistics", "string", "typing",
    }
)  # fmt: skip

_BLOCKS = "it blocks, and a script runs inside every decision"
_REPLAY = "a decision must replay from its log, so a script has no clock and no dice"

#: Why some modules are not on the list; any other is refused without a special reason.
REFUSED_IMPORTS: Mapping[str, str] = MappingProxyType(
    {
        "random": f"{_REPLAY}; equal scores already share by the router's own draw",
        "secrets": f"{_REPLAY}; equal scores already share by the router's own draw",
        "time": f"{_REPLAY}; ages are on the node: telemetry_age_s(node)",
        "datetime": f"{_REPLAY}; ages are on the node: telemetry_age_s(node)",
        "functools": "a cache answers with yesterday's score: node rows are live views",
        "itertools": "the time limit cannot interrupt an endless iterator inside C code; write a loop",
        "socket": f"{_BLOCKS}; what a script may measure is in ccr.metrics",
        "requests": f"{_BLOCKS}; what a script may measure is in ccr.metrics",
        "urllib": f"{_BLOCKS}; what a script may measure is in ccr.metrics",
        "http": f"{_BLOCKS}; what a script may measure is in ccr.metrics",
        "os": "a script proposes a node and touches nothing else",
        "sys": "a script proposes a node and touches nothing else",
        "subprocess": "a script proposes a node and touches nothing else",
        "threading": "a script proposes a node and touches nothing else",
        "asyncio": "score is called, not awaited",
    }
)

_RUNS_TEXT = "it runs text as code; write the code out"
_REACHES = "it reaches around what a script is handed; use the attributes of node and req"
_SWALLOWS = "it would catch the time limit's own interruption; catch Exception, or better the one you expect"

#: Names a script may not mention, and why.
REFUSED_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "eval": _RUNS_TEXT,
        "exec": _RUNS_TEXT,
        "compile": _RUNS_TEXT,
        "open": _BLOCKS,
        "input": _BLOCKS,
        "print": f"{_BLOCKS}; scores are in the decision log",
        "breakpoint": _BLOCKS,
        "help": _BLOCKS,
        "exit": "it would stop the router",
        "quit": "it would stop the router",
        "SystemExit": "it would stop the router",
        "KeyboardInterrupt": "it would stop the router",
        "globals": _REACHES,
        "locals": _REACHES,
        "vars": _REACHES,
        "setattr": "node and req are read-only",
        "delattr": "node and req are read-only",
        "hash": "it differs between processes, and replicas must agree",
        "id": "it differs between processes, and replicas must agree",
        "BaseException": _SWALLOWS,
        "BaseExceptionGroup": _SWALLOWS,
        "GeneratorExit": _SWALLOWS,
    }
)

#: The functions of the dialect: name -> how they are called.
SIGNATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"score": ("node", "req"), "batch_hint": ("req_list",)}
)

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_LOOPS = (ast.For, ast.While)
# Special methods that only the script's own code calls; __del__, for one, swallows what is raised in it.
_METHODS = frozenset(
    {
        "__init__",
        "__post_init__",
        "__call__",
        "__len__",
        "__iter__",
        "__contains__",
        "__getitem__",
        "__lt__",
        "__eq__",
    }
)

Place = tuple[int, str]
Finding = tuple[ast.AST, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_script(source: str, filename: str) -> ast.Module:
    """The parsed script.

    Args:
        source: the text.
        filename: for messages.

    Raises:
        ScriptError: with one line per finding, ``file:line: what is wrong; what to do``.
    """
    tree = _parsed(source, filename)
    findings = sorted({*_shape(tree), *_everywhere(tree)})
    if findings:
        raise ScriptError("\n".join(f"{filename}:{line}: {what}" for line, what in findings))
    return tree


def imported_modules(tree: ast.Module) -> list[str]:
    """Names of the modules a script imports, sorted."""
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return sorted(named | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)})


def _parsed(source: str, filename: str) -> ast.Module:
    try:
        return ast.parse(source, filename)
    except SyntaxError as error:
        raise ScriptError(f"{filename}:{error.lineno or 1}: {error.msg}; correct the syntax") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ScriptError(f"{filename}:1: cannot be parsed ({error}); is it a Python file?") from error


def _shape(tree: ast.Module) -> Iterator[Place]:
    """Findings about the functions of the dialect."""
    found = {name: _definitions(tree, name) for name in SIGNATURES}
    if not found["score"]:
        yield _missing_score(tree)
    for name, definitions in found.items():
        for earlier in definitions[:-1]:
            yield (
                earlier.lineno,
                f"{name} is defined again on line {definitions[-1].lineno}; keep one of them",
            )
        for definition in definitions:
            yield from _function(definition, SIGNATURES[name])


def _definitions(tree: ast.Module, name: str) -> list[Function]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in tree.body if isinstance(node, functions) and node.name == name]


def _missing_score(tree: ast.Module) -> Place:
    for node in ast.walk(tree):
        stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "score"
        if stored or (isinstance(node, (*_SCOPES[:3],)) and node.name == "score"):
            line: int = getattr(node, "lineno", 1)
            return (
                line,
                "score is not a function of the module; write def score(node, req) at the left margin",
            )
    return 1, "there is no score; write def score(node, req) that returns a number, higher preferred"


def _function(definition: Function, expected: tuple[str, ...]) -> Iterator[Place]:
    name, line = definition.name, definition.lineno
    remedy = f"write def {name}({', '.join(expected)})"
    if isinstance(definition, ast.AsyncFunctionDef):
        yield line, f"{name} is async, but it is called, not awaited; {remedy}"
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in _within(definition.body, _SCOPES)):
        yield line, f"{name} is a generator; return the number instead of yielding it"
    if definition.decorator_list:
        yield line, f"{name} is decorated, so its signature cannot be checked; {remedy} without a decorator"
    if not _takes(definition.args, len(expected)):
        yield line, f"{name} cannot be called with {len(expected)} argument(s); {remedy}"


def _takes(arguments: ast.arguments, count: int) -> bool:
    """Whether ``count`` positional arguments make a call."""
    most = len(arguments.posonlyargs) + len(arguments.args)
    least = most - len(arguments.defaults)
    return (
        least <= count
        and (count <= most or arguments.vararg is not None)
        and None not in arguments.kw_defaults
    )


def _everywhere(tree: ast.Module) -> Iterator[Place]:
    """Findings that do not depend on where in the script they are."""
    for node in ast.walk(tree):
        rule = RULES.get(type(node))
        if rule is not None:
            for place, what in rule(node):
                yield getattr(place, "lineno", 1), what


def _import(node: ast.Import) -> Iterator[Finding]:
    yield from (
        (node, _refused_import(alias.name)) for alias in node.names if alias.name not in ALLOWED_IMPORTS
    )


def _import_from(node: ast.ImportFrom) -> Iterator[Finding]:
    if node.level:
        yield node, "relative import; a script is one file: write it all there"
    elif node.module not in ALLOWED_IMPORTS:
        yield node, _refused_import(node.module or "")
    elif node.module == "ccr":
        inside = [alias.name for alias in node.names if alias.name not in {"metrics", "__version__"}]
        yield from ((node, _refused_import(f"ccr.{name}")) for name in inside)


def _refused_import(module: str) -> str:
    reason = REFUSED_IMPORTS.get(module.split(".", maxsplit=1)[0])
    return f"import of {module} is refused" + (
        f": {reason}" if reason else f"; scripts may import {', '.join(sorted(ALLOWED_IMPORTS))}"
    )


def _name(node: ast.Name) -> Iterator[Finding]:
    if reason := REFUSED_NAMES.get(node.id):
        yield node, f"{node.id} is refused: {reason}"
    elif node.id.startswith("__") and node.id != "__name__":
        yield node, f"{node.id} is refused: {_REACHES}"


def _attribute(node: ast.Attribute) -> Iterator[Finding]:
    own = isinstance(node.value, ast.Name) and node.value.id == "self" and not node.attr.startswith("__")
    if node.attr.startswith("_") and not own:
        yield node, f"private attribute {node.attr} is refused: {_REACHES}"


def _except(node: ast.ExceptHandler) -> Iterator[Finding]:
    if node.type is None:
        yield node, f"bare except is refused: {_SWALLOWS}"


def _try(node: ast.Try) -> Iterator[Finding]:
    for inner in (*_within(node.finalbody, _SCOPES, ast.Return), *_breaks(node.finalbody)):
        word = type(inner).__name__.lower()
        yield (
            inner,
            f"{word} in finally is refused: it drops exceptions, the time limit's included; move it out",
        )


def _while(node: ast.While) -> Iterator[Finding]:
    endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
    exits = _within(node.body, _SCOPES, ast.Return, ast.Raise, ast.Yield)
    if endless and not any(exits) and not any(isinstance(jump, ast.Break) for jump in _breaks(node.body)):
        yield node, "this loop never ends; give it a condition, or loop over a range"


def _with(node: ast.With | ast.AsyncWith) -> Iterator[Finding]:
    yield (
        node,
        "with is refused: it can drop exceptions, the time limit's included; a script has nothing to open or to lock",
    )


def _global(node: ast.Global) -> Iterator[Finding]:
    yield (
        node,
        f"global {', '.join(node.names)} is refused: same request and nodes, same score; nothing is remembered",
    )


def _method(node: ast.FunctionDef) -> Iterator[Finding]:
    if node.name.startswith("__") and node.name not in _METHODS:
        yield node, f"{node.name} is refused: Python may call it where no time limit holds; use a plain name"


def _assigned(node: ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete) -> Iterator[Finding]:
    targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
    for target in targets:
        if isinstance(target, ast.Attribute | ast.Subscript) and _root(target) in {"node", "req"}:
            yield (
                node,
                f"{_root(target)} is read-only: a policy proposes, it does not change what it is handed",
            )


def _root(target: ast.expr) -> str:
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    return target.id if isinstance(target, ast.Name) else ""


def _within(
    body: Iterable[ast.AST], walls: tuple[type[ast.AST], ...], *wanted: type[ast.AST]
) -> Iterator[ast.AST]:
    """Nodes in ``body`` of the ``wanted`` kinds (all, when none is named), without looking behind ``walls``."""
    stack = list(body)
    while stack:
        node = stack.pop()
        if not wanted or isinstance(node, wanted):
            yield node
        if not isinstance(node, walls):
            stack.extend(ast.iter_child_nodes(node))


def _breaks(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    return _within(body, (*_SCOPES, *_LOOPS), ast.Break, ast.Continue)


#: What is looked at: node type -> a function giving what is wrong with such a node, if anything.
RULES: Mapping[type[ast.AST], Callable[[Any], Iterator[Finding]]] = MappingProxyType(
    {
        ast.Import: _import,
        ast.ImportFrom: _import_from,
        ast.Name: _name,
        ast.Attribute: _attribute,
        ast.ExceptHandler: _except,
        ast.Try: _try,
        ast.TryStar: _try,
        ast.While: _while,
        ast.With: _with,
        ast.AsyncWith: _with,
        ast.Global: _global,
        ast.FunctionDef: _method,
        ast.Assign: _assigned,
        ast.AugAssign: _assigned,
        ast.AnnAssign: _assigned,
        ast.Delete: _assigned,
    }
)
