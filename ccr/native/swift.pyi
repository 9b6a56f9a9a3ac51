from collections.abc import Mapping

from ccr.book import Counts, Flags, Floats, Placed
from ccr.look import Look
from ccr.types import Mask

ROWS: Mapping[str, str]

class Book:
    def __init__(self, *arrays: Floats | Flags | Counts) -> None: ...
    def asked_for(self, model: int, /) -> None: ...
    def place(
        self, model: int, node: int, prompt_tokens: float, output_tokens: float, cached_tokens: float,
        unseen: float, now_s: float, /,
    ) -> tuple[int, int, float, float, float, float, float, float, bool, float, float, float]: ...  # fmt: skip
    def first_token(self, placed: Placed, now_s: float, /) -> None: ...
    def leave(self, placed: Placed, has_first_token: bool, now_s: float, /) -> None: ...
    def learn(
        self, placed: Placed, ttft_s: float, total_s: float, output_tokens: float, now_s: float, /
    ) -> None: ...
    def look(
        self, columns: Floats, model: int, prompt_tokens: float, output_tokens: float, session_node: int,
        session_tokens: float, coverage: float, now_s: float, out: Floats, /,
    ) -> None: ...  # fmt: skip

class Network:
    def __init__(self, *arrays: Floats | Counts | int) -> None: ...
    def logits(self, look: Look, mask: Mask, out: Floats, /) -> None: ...

def costs(look: Look, theta: Floats, out: Floats, /) -> None: ...
def refresh(
    seen: Floats, stale_after_s: float, qps_window_s: float, latency_memory_s: float, slow_start_s: float,
    now_s: float, columns: Floats, /,
) -> float: ...  # fmt: skip
