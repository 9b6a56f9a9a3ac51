"""Qwen on Bailian: conversations as chains of parents, with 16-token prefix blocks."""

from collections.abc import Mapping
from typing import Any

from envs.traces.reader import JsonlFormat, RowOf
from envs.traces.rows import MAX_TOKENS, BadRow, Row, blocks, lengths, number, short

_NO_PARENT = -1


def _start(model: str) -> RowOf:
    roots: dict[int, int] = {}

    def row_of(record: Mapping[str, Any]) -> Row:
        chat, parent = _chat(record, "chat_id"), _chat(record, "parent_chat_id")
        at_s = number(record["timestamp"], "timestamp", "seconds, >= 0")
        # Also for a row that is dropped below: its children belong to the same conversation. A parent from before the
        # file begins stands for the root that is not known.
        root = roots[chat] = chat if parent == _NO_PARENT else roots.setdefault(parent, parent)
        prompt_tokens, output_tokens = lengths(
            record["input_length"], record["output_length"], ("input_length", "output_length")
        )
        return Row(
            t=at_s,
            model=model,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            session=str(root),
            prefix_blocks=blocks(record["hash_ids"], "hash_ids"),
        )

    return row_of


def _chat(record: Mapping[str, Any], key: str) -> int:
    value = record[key]
    if not isinstance(value, int) or isinstance(value, bool) or not _NO_PARENT <= value <= MAX_TOKENS**2:
        raise BadRow(f"{key} is no id", f"{key} is {short(value)}; expected a whole number, -1 for no parent")
    return value


QWEN_BAILIAN = JsonlFormat(
    name="qwen-bailian",
    keys=frozenset(
        {
            "chat_id",
            "parent_chat_id",
            "timestamp",
            "input_length",
            "output_length",
            "type",
            "turn",
            "hash_ids",
        }
    ),
    start=_start,
    licence="Apache-2.0",
    notes=("a session is the root of a chain of parents", "one model id for all"),
    block_tokens=16,
)
