"""Mooncake: requests with chains of 512-token prefix blocks, without sessions."""

from collections.abc import Mapping
from typing import Any

from envs.traces.reader import JsonlFormat, RowOf
from envs.traces.rows import Row, blocks, lengths, number


def _start(model: str) -> RowOf:
    def row_of(record: Mapping[str, Any]) -> Row:
        at_ms = number(record["timestamp"], "timestamp", "milliseconds, >= 0")
        prompt_tokens, output_tokens = lengths(
            record["input_length"], record["output_length"], ("input_length", "output_length")
        )
        return Row(
            t=at_ms / 1000,
            model=model,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            prefix_blocks=blocks(record["hash_ids"], "hash_ids"),
        )

    return row_of


MOONCAKE = JsonlFormat(
    name="mooncake",
    keys=frozenset({"timestamp", "input_length", "output_length", "hash_ids"}),
    foreign=frozenset({"chat_id", "parent_chat_id"}),
    start=_start,
    licence="Apache-2.0",
    notes=("the source does not tell models or sessions: one model id for all",),
    block_tokens=512,
)
