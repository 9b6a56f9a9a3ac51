import json

import numpy as np
import pytest

from ccr.errors import TraceError
from envs.traces.convert import detected


@pytest.fixture
def directory(tmp_path):
    """A directory of two clients: one Gamma, one Weibull; the second is quiet in the first window."""

    def make(traces=None, dataset=None):
        root = tmp_path / "m-tiny"
        root.mkdir()
        traces = traces or {
            0: "0,2.0,3.0,Gamma,0.25,2.0\n600,1.0,1,Gamma,1,1\n",
            7: "0,0,0,,0,0\n600,1.0,2.0,Weibull,0.6,0.5\n",
        }
        dataset = dataset or {"0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{5: 1.0}"}}
        for i, content in traces.items():
            (root / f"chunk-{i}-trace.csv").write_text(content)
            (root / f"chunk-{i}-dataset.json").write_text(json.dumps(dataset))
        return root

    return make


def test_what_is_drawn_is_marked_and_carries_its_seed(directory, imported):
    root = directory()

    assert detected(root) == "servegen"
    header, rows = imported("auto", root, seed=3)
    assert (header.generated, header.seed, header.source) == (True, 3, "servegen: m-tiny")
    assert {row.model for row in rows} == {"m-tiny-c0", "m-tiny-c7"}
    assert {row.prompt_tokens for row in rows} == {10, 20}
    assert {row.output_tokens for row in rows} == {5}


def test_the_same_seed_draws_the_same_whatever_part_is_asked_for(directory, imported):
    root = directory()

    _, whole = imported("servegen", root, seed=3)
    _, again = imported("servegen", root, seed=3)
    _, part = imported("servegen", root, seed=3, from_s=600.0)
    _, other = imported("servegen", root, seed=4)

    assert whole == again
    assert [row.t for row in part] == pytest.approx([row.t - 600 for row in whole if row.t >= 600])
    assert [row.t for row in other] != [row.t for row in whole]


def test_rates_and_burstiness_are_those_of_the_parameters(directory, imported):
    windows = "".join(f"{600 * i},2.0,2.0,Gamma,0.25,2.0\n" for i in range(100))

    _, rows = imported("servegen", directory({0: windows}))

    t = np.array([row.t for row in rows])
    assert t.size / 60_000 == pytest.approx(2.0, rel=0.05)
    assert np.diff(t).std() / np.diff(t).mean() == pytest.approx(2.0, rel=0.05)


def test_a_scaled_rate_thins_the_draw_and_keeps_the_clock(directory, imported):
    windows = "".join(f"{600 * i},2.0,1.0,,0,0\n" for i in range(20))

    _, rows = imported("servegen", directory({0: windows}), rate_scale=0.5)

    assert len(rows) == pytest.approx(12_000, rel=0.05)
    assert 11_900 < rows[-1].t < 12_000


def test_clients_and_windows_without_lengths_are_counted(directory, imported):
    root = directory(dataset={"600": {"input_tokens": "{1: 1}", "output_tokens": "{1: 1}"}})
    (root / "chunk-7-dataset.json").unlink()

    header, rows = imported("servegen", root)

    assert min(row.t for row in rows) >= 600
    assert dict(header.rows_dropped) == {"client without a dataset file": 1, "window without lengths": 1}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("__import__('os').abort()", id="code"),
        pytest.param("{1: 0.5", id="cut off"),
        pytest.param("[1, 2]", id="a list"),
        pytest.param("{1: 'much'}", id="words"),
        pytest.param("{1: -1.0, 2: 2.0}", id="negative probability"),
        pytest.param("{-5: 1.0}", id="negative length"),
        pytest.param("{1: 1e999}", id="infinite"),
        pytest.param("(" * 5000 + ")" * 5000, id="nested without end"),
        pytest.param("{1e400: 1.0}", id="endless length"),
    ],
)
def test_a_text_that_is_no_distribution_is_refused_and_never_run(directory, imported, text):
    root = directory(dataset={"0": {"input_tokens": text, "output_tokens": "{1: 1}"}})

    with pytest.raises(TraceError, match=r"chunk-0-dataset.json is no dataset of servegen"):
        imported("servegen", root)


@pytest.mark.parametrize(
    ("row", "story"),
    [
        pytest.param("0,1,1,Gamma,1", "5 fields", id="too short"),
        pytest.param("0,x,1,Gamma,1,1", "rate is 'x'", id="no rate"),
        pytest.param("0,1,1,Pareto,1,1", "family is 'Pareto'", id="unknown family"),
        pytest.param("0,1,1,Weibull,0,1", "shape 0", id="shape zero"),
        pytest.param("0,1e9,1,Gamma,1,1", "rate of 1e\\+09", id="absurd rate"),
    ],
)
def test_a_broken_window_stops_with_its_line(directory, imported, row, story):
    with pytest.raises(TraceError, match=rf"chunk-0-trace.csv, line 2: .*{story}"):
        imported("servegen", directory({0: f"0,1,1,Gamma,1,1\n{row}\n"}))


def test_a_directory_of_something_else_is_refused(tmp_path, imported):
    with pytest.raises(TraceError, match=r"holds no chunk-I-trace.csv"):
        imported("servegen", tmp_path)
    with pytest.raises(TraceError, match=r"directory without chunk-I-trace.csv"):
        imported("auto", tmp_path)
