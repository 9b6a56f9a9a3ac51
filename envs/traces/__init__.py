"""Request traces: the formats that can be imported, and the traces that come with the package."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ccr.errors import TraceError
from envs.traces.azure import AZURE_2023, AZURE_2024, AZURE_2025_LMM
from envs.traces.burstgpt import BURSTGPT
from envs.traces.ccr_format import CcrFormat
from envs.traces.gentd26 import GENTD26
from envs.traces.mooncake import MOONCAKE
from envs.traces.qwen_bailian import QWEN_BAILIAN
from envs.traces.reader import Reader
from envs.traces.recording import Recording
from envs.traces.servegen import ServeGen

#: Format -> what reads it.
READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "azure2023": AZURE_2023,
        "azure2024": AZURE_2024,
        "azure2025-lmm": AZURE_2025_LMM,
        "burstgpt": BURSTGPT,
        "mooncake": MOONCAKE,
        "qwen-bailian": QWEN_BAILIAN,
        "servegen": ServeGen(),
        "gentd26": GENTD26,
        "ccr": CcrFormat(),
        "recording": Recording(),
    }
)

_DATA = Path(__file__).parent.parent / "data"


def bundled(name: str) -> Path:
    """A trace that comes with the package, such as ``synthetic``.

    Raises:
        TraceError: naming those there are.
    """
    path = _DATA / f"{name}.csv.gz"
    names = sorted(one.name.removesuffix(".csv.gz") for one in _DATA.glob("*.csv.gz"))
    if name not in names:
        raise TraceError(f"no trace {name!r} comes with the package; there is {', '.join(names)}")
    return path
