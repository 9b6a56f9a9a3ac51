import numpy as np
import pytest

from ccr.errors import TraceError
from envs.traces.plot import plot
from envs.traces.synth import Workload, draw


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(draw(Workload(duration_s=60), 1), id="a workload"),
        pytest.param(draw(Workload(models=tuple(f"m{i}" for i in range(20)), duration_s=60), 1), id="more models than colours"),
        pytest.param(draw(Workload(duration_s=60), 1).take(slice(0, 1)), id="one request"),
    ],
)  # fmt: skip
def test_a_picture_is_drawn(tmp_path, trace):
    plot(trace, tmp_path / "p.png", "title")

    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused(tmp_path):
    trace = draw(Workload(duration_s=60), 1)

    with pytest.raises(TraceError, match="nothing to plot"):
        plot(trace.take(np.zeros(len(trace), bool)), tmp_path / "p.png")
    with pytest.raises(TraceError, match="cannot write"):
        plot(trace, tmp_path / "p.nonsense")
