"""A simulator in which weights are as good as their version says, so that verdicts are known beforehand."""

from ccr.policies.learned import learned
from tests.envs.evaluation import synthetic

REGIMES = tuple(f"regime-{k}" for k in range(9))


def run(scenario, policy, seed, options):
    """A version that is called like a policy of the synthetic simulator is that policy; ``mixed`` is good but for one regime."""
    name = (
        learned(options["weights"]).version
        if policy == "learned"
        else {"least_cost": "base"}.get(policy, policy)
    )
    if name == "mixed":
        name = "slow" if scenario == REGIMES[4] else "half"
    if name not in synthetic.FACTORS:
        name = "same"  # what ships is no worse than the heuristic, and no better
    return synthetic.run(scenario, name, seed, {}, requests=150)


def an_engine():
    return synthetic.an_engine(
        run=run,
        scenarios=dict.fromkeys(REGIMES, "A regime."),
        suites={"full": REGIMES, "smoke": REGIMES[:2]},
        policies=("least_cost", "slow", "learned"),
        tunable={},
    )
