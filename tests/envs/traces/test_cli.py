import json

import pytest
from click.testing import CliRunner

from envs.traces.cli import cut, describe, import_, synth
from envs.traces.trace import read

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 {hour:02d}:00:00,{hour + 1},1\n" for hour in range(5)
)


def run(command, *words):
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert done.exit_code in {0, 1, 2}, done.exception
    return done


def test_import_reports_what_it_did(file, tmp_path):
    done = run(import_, "auto", file(AZURE + "2023-11-16 06:00:00,5,0\n"), "-o", tmp_path / "a.csv.gz")

    assert done.exit_code == 0
    assert "left out: no output tokens (failed)" in done.output
    assert len(read(tmp_path / "a.csv.gz")) == 5


def test_import_takes_hours_and_prints_the_header_as_json(file, tmp_path):
    done = run(
        import_, "azure2023", file(AZURE), "-o", tmp_path / "a.jsonl", "--from", 1, "--hours", 2, "--model", "m",
        "--scale-rate", 3600, "--json",
    )  # fmt: skip

    trace = read(tmp_path / "a.jsonl")
    assert json.loads(done.output) == trace.header.as_json()
    assert (trace.models, trace.t.tolist(), trace.prompt_tokens.tolist()) == (("m",), [0.0, 1.0], [2, 3])


@pytest.mark.parametrize(
    ("words", "story"),
    [
        pytest.param(("azure2024",), "line 2: TIMESTAMP is", id="another format"),
        pytest.param(
            ("azure2023", "--seed", "1"), "nothing is drawn; leave --seed out", id="a seed for nothing"
        ),
        pytest.param(("azure2023", "--from", "99"), "nothing is left", id="behind the end"),
    ],
)
def test_import_refuses_with_one_message_and_leaves_nothing(file, tmp_path, words, story):
    form, *options = words

    done = run(import_, form, file(AZURE), "-o", tmp_path / "a.csv", *options)

    assert done.exit_code == 1
    assert story in done.output
    assert "Traceback" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["source.csv"]


def test_synth_cut_and_describe_fit_together(tmp_path):
    whole, part, stats, picture = (tmp_path / name for name in ("w.csv.gz", "p.jsonl", "s.json", "p.png"))

    made = run(synth, "-o", whole, "--duration", 200, "--rate", 5, "--switch", "chat-7b@1=chat-7b@2:50:20", "--priorities", "0=0.5,2=0.5", "--seed", 3)  # fmt: skip
    taken = run(cut, whole, "-o", part, "--from", 100, "--to", 150, "--models", "chat-7b", "--json")
    shown = run(describe, part, "--json", stats, "--plot", picture)

    assert (made.exit_code, taken.exit_code, shown.exit_code) == (0, 0, 0)
    found = json.loads(stats.read_text())
    assert found["requests"] == json.loads(taken.output)["rows"] == len(read(part))
    assert {row["model"] for row in found["models"]} == {"chat-7b@2"}
    assert "req/s" in shown.output
    assert picture.exists()


def test_describe_writes_nothing_but_json_to_standard_output(tmp_path):
    run(synth, "-o", tmp_path / "a.csv", "--duration", 60)

    done = run(describe, tmp_path / "a.csv", "--json", "-")

    assert json.loads(done.stdout)["header"]["generated"] is True


def test_the_header_tells_the_command_that_drew_it(tmp_path):
    run(
        synth,
        "-o",
        tmp_path / "a.csv",
        "--duration",
        60,
        "--seed",
        3,
        "--switch",
        "chat-7b@1=x:1",
        "--switch",
        "x=y:2:3",
    )

    header = read(tmp_path / "a.csv").header

    assert header.notes == (
        "drawn by: ccr traces synth --duration 60 --switch chat-7b@1=x:1 --switch x=y:2:3 --seed 3",
    )
    assert (header.seed, header.generated) == (3, True)


@pytest.mark.parametrize(
    ("words", "story"),
    [
        pytest.param(("--switch", "a:1"), "write FROM=TO:AT", id="switch without a target"),
        pytest.param(("--switch", "a=b:soon"), "write FROM=TO:AT", id="switch in words"),
        pytest.param(("--switch", "a=b:1:2:3"), "write FROM=TO:AT", id="switch with too much"),
        pytest.param(("--switch", "nobody=b:1"), "nothing asks for 'nobody'", id="switch from nowhere"),
        pytest.param(("--priorities", "high"), "write P=SHARE", id="priorities in words"),
        pytest.param(("--rate", "0"), "workload: rate is 0.0", id="no rate"),
        pytest.param(("--rate", "1e-9"), "not a single request", id="hardly a rate"),
    ],
)
def test_synth_refuses_what_makes_no_sense(tmp_path, words, story):
    done = run(synth, "-o", tmp_path / "a.csv", *words)

    assert done.exit_code == 1
    assert story in done.output
    assert not list(tmp_path.iterdir())


def test_a_missing_matplotlib_is_named_with_the_remedy(tmp_path, monkeypatch):
    run(synth, "-o", tmp_path / "a.csv", "--duration", 60)
    monkeypatch.setitem(__import__("sys").modules, "envs.traces.plot", None)

    done = run(describe, tmp_path / "a.csv", "--plot", tmp_path / "p.png")

    assert done.exit_code == 1
    assert "pip install 'ccr-autopilot[simulator]'" in done.output
