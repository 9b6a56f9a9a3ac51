"""GenTD26: image generation with base models and LoRA; it tells popularity and switching, not tokens."""

from collections.abc import Sequence

from envs.traces.reader import CsvFormat, RowOf
from envs.traces.rows import Dropped, Row, name
from envs.traces.stamps import Since, nanoseconds

_COLUMNS = (
    "gmt_create", "predict_type", "predict_status", "exec_time_seconds", "groupId", "prompt_length",
    "negative_prompt_length", "num_images_per_prompt", "num_inference_steps", "checkpoint_model_version_id", "num_lora",
)  # fmt: skip


def _start(_: str) -> RowOf:
    since = Since()

    def row_of(fields: Sequence[str]) -> Row:
        row = dict(zip(_COLUMNS, fields, strict=True))
        t = since.seconds(nanoseconds(row["gmt_create"], "gmt_create")[0])
        if row["predict_status"] != "SUCCEED":
            raise Dropped(f"predict_status {name(row['predict_status'], 'predict_status') or 'empty'}")
        model = name(row["checkpoint_model_version_id"], "checkpoint_model_version_id")
        if not model:
            raise Dropped("no model")
        return Row(t=t, model=model)

    return row_of


GENTD26 = CsvFormat(
    name="gentd26",
    columns=_COLUMNS,
    start=_start,
    licence="no licence file; for research or study, says its README",
    notes=(
        "image generation: prompt_length counts characters, so token counts are unknown and stay empty",
        "exec_time_seconds is left out: it is not the latency of any node here",
        "times in whole seconds: many requests share one",
    ),
)
