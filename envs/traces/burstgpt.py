"""BurstGPT: ChatGPT and GPT-4 requests of a campus, in whole seconds."""

from collections.abc import Sequence

from envs.traces.reader import CsvFormat, RowOf
from envs.traces.rows import Dropped, Row, lengths, name, number

_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


def _start(_: str) -> RowOf:
    def row_of(fields: Sequence[str]) -> Row:
        t, model, prompt, output, session = fields[0], fields[1], fields[2], fields[3], fields[6]
        at_s = number(t, _COLUMNS[0], "seconds, >= 0")
        prompt_tokens, output_tokens = lengths(prompt, output, (_COLUMNS[2], _COLUMNS[3]))
        return Row(
            t=at_s,
            model=_model(model),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            session=name(session, "Session ID"),
        )

    return row_of


def _model(text: str) -> str:
    found = name(text, "Model")
    if not found:
        raise Dropped("no model")
    return found


BURSTGPT = CsvFormat(
    name="burstgpt",
    columns=_COLUMNS,
    optional=("Session ID", "Elapsed time"),
    start=_start,
    licence="CC-BY-4.0",
    notes=(
        "times in whole seconds: many requests share one",
        "Elapsed time is left out: it is the latency of another service, not of any node here",
    ),
)
