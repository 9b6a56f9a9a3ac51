"""Every claim about the learned policy, measured: ``python -m benchmarks.claims`` writes docs/results.json and docs/results.md.

All comparisons are paired on days that nothing was trained or chosen on. A claim that is not met is written down as such,
and so is one that was not measured.
"""
