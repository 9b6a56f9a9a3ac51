"""What the demo tells of the learner."""

from router.demo.drift import Seen, svg
from router.learner_lines import lines

NODE = {"speed": 2.0, "overhead_s": None, "answers": 40}
STATUS = {
    "state": "retraining", "since_s": 90.0, "records": 12_345, "records_per_s": 60.4,
    "progress": {"words": "searching", "share": 0.5},
    "version": {"version": 3, "name": "live.1", "reason": "retrained", "registered": 7},
    "gate": {"words": "passed: cost 0.900 [0.850, 0.950]"},
    "calibration": {"nodes": {"a10-1": NODE, "a10-2": NODE | {"answers": 3}}, "models": {"m": {"load_s": 6.5}}},
    "doubted": ["a10-1"],
    "drift": [{"words": "time of answers of node a10-1, warm: 2.00 times what it was", "since_s": 70.0}],
}  # fmt: skip


def test_version_calibration_gate_and_drift_are_told():
    told = lines(STATUS, 100.0)

    assert told[0] == "learner: retraining for 10 s (searching, 50%); 12,345 records, 60/s"
    assert "version 3, live.1 (retrained), in MLflow as 7" in told[1]
    assert "passed: cost 0.900" in told[2]
    assert "a10-1 2.00x, loads 6.5-6.5 s, telemetry doubted: a10-1" in told[3]
    assert "a10-2" not in told[3]
    assert told[4].endswith("2.00 times what it was, since 30 s")


def test_a_learner_that_has_just_begun_has_little_to_tell():
    told = lines({"state": "standby"}, 100.0)

    assert told[0].startswith("learner: standby")
    assert told[1:] == [
        "  last gate: none yet",
        "  calibration: no node has answered enough yet",
        "  drift: none",
    ]


def test_the_picture_shows_both_lines_and_when_the_node_became_slow():
    samples = tuple((float(k), 1.0 if k < 100 else 3.0) for k in range(300))

    picture = svg(Seen(samples, "a10-1", 100.0, 200.0, 300.0, {"drift": [{"words": "x < y"}]}, 0.25, 0.1))

    assert picture.count("<polyline") == 2
    assert "a10-1 takes 4 times as long" in picture
    assert "x &lt; y" in picture
