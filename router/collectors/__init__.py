"""Every telemetry source by the name a node's ``engine`` gives."""

from collections.abc import Mapping
from types import MappingProxyType

from router.collectors.auto import AUTO
from router.collectors.collector import Collector
from router.collectors.emulator import EMULATOR
from router.collectors.sglang import SGLANG
from router.collectors.tgi import TGI
from router.collectors.triton import TRITON
from router.collectors.trtllm import TRTLLM
from router.collectors.vllm import VLLM

COLLECTORS: Mapping[str, Collector] = MappingProxyType(
    {
        "auto": AUTO,
        "emulator": EMULATOR,
        "sglang": SGLANG,
        "tgi": TGI,
        "triton": TRITON,
        "trtllm": TRTLLM,
        "vllm": VLLM,
    }
)
