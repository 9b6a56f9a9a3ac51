"""The benchmark of feedback measures what it says."""

from benchmarks.feedback import BLOCK, OPEN, Stage, measured
from router.store.embedded import EmbeddedStore


def test_a_block_that_is_told_makes_records_and_one_that_is_not_makes_none(tmp_path):
    stage = Stage(4, EmbeddedStore(tmp_path))

    stage.block_s(told=False)
    untold = stage.feeder.counts().taken
    stage.block_s(told=True)

    assert (untold, stage.feeder.counts().taken) == (0, BLOCK)
    assert len(stage.open) == OPEN
    assert stage.bring_away_s() > 0.0


def test_told_is_compared_with_untold():
    found = measured(nodes=8, rounds=2)

    assert found["ratio"] > 0.5
    assert found["untold_us"] > 0.0
    assert found["record_us"] > 0.0
