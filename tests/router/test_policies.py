import asyncio
from dataclasses import replace

import pytest

from ccr.errors import ConfigError, ScriptError, WeightsError
from ccr.exploration import Exploration
from ccr.policies import POLICIES
from ccr.policies.learned import learned
from ccr.policies.time_guard import TIMED_OUT
from ccr.publication import NOTHING, Fence
from ccr.settings import PolicySettings, Settings, parse
from ccr.types import Explored, Fleet, NodeSpec, Request
from ccr.weights import save
from router.policies import PolicySwitch
from tests.weights import VERSION, some_weights

REQUEST = Request(id="r1", model="llama")
FLEET = Fleet.of([{"spec": NodeSpec(name, f"http://{name}:1"), "loaded": ["llama"]} for name in "abc"])


def a_switch(**policy):
    return PolicySwitch(Settings(policy=PolicySettings(**policy)))


@pytest.fixture
def script(tmp_path):
    """A script that prefers one node; the function writes it again."""
    path = tmp_path / "policy.py"

    def prefer(node):
        path.write_text(f"def score(node, req):\n    return node.id == '{node}'\n")
        path.chmod(0o644)
        return path

    prefer("b")
    prefer.path = path
    return prefer


def preferred(switch):
    """By the policy in force; a script gets time for a garbage collection in this process."""
    policy = switch.engine.policy
    if switch.script is not None:
        policy = replace(policy, limit_s=5.0)
    return FLEET.nodes[policy.scores(REQUEST, FLEET).argmax()].id


@pytest.mark.parametrize("name", POLICIES)
async def test_every_policy_of_the_table_can_be_put_in_force(name):
    switch = a_switch(name="random")

    swap = await switch.switch(name)

    assert (swap.policy, swap.previous) == (name, "random")
    assert switch.describe()["name"] == name
    assert switch.engine.decide(REQUEST, FLEET, 0.5).policy == name


def test_options_reach_the_policy():
    switch = a_switch(name="least_request", options={"cold_start_penalty": 9.0})

    assert switch.engine.policy.cold_start_penalty == 9.0


@pytest.mark.parametrize("option", ["cold_start_penality", "name", "picker"])
def test_an_option_that_a_policy_does_not_take_is_refused_with_those_it_takes(option):
    with pytest.raises(
        ConfigError, match=rf"'least_request' has no option {option}; it takes cold_start_penalty$"
    ):
        a_switch(name="least_request", options={option: 1.0})


def test_a_policy_without_options_says_so():
    with pytest.raises(ConfigError, match="it takes none"):
        a_switch(name="random", options={"seed": 1.0})


@pytest.mark.parametrize("name", ["nope", "", "script"])
async def test_a_switch_to_what_there_is_not_changes_nothing(name):
    switch = a_switch(name="random")

    with pytest.raises(ConfigError):
        await switch.switch(name)
    with pytest.raises(ConfigError):
        await switch.switch("least_request", {"nope": 1.0})

    assert (switch.engine.policy.name, switch.epoch) == ("random", 1)


async def test_the_epoch_grows_with_each_change():
    switch = a_switch(name="random")

    await switch.switch("round_robin")
    await switch.switch("round_robin")

    assert switch.epoch == 3


async def test_exploration_and_guard_outlive_a_switch():
    switch = a_switch(name="random", exploration=0.25)
    guard = switch.engine.guard

    await switch.switch("least_request")

    assert switch.engine.exploration == Exploration(0.25)
    assert switch.engine.guard is guard


def test_without_exploration_there_is_nothing_to_pay_for():
    assert a_switch(name="random").engine.exploration is None


def test_exploration_stands_still_while_its_budget_is_used_up():
    switch = a_switch(exploration=0.25, exploration_budget=0.1, exploration_window_s=10.0)

    switch.explored(Explored(0.25, 0.2, 1.0), 0.0)
    then = switch.engine.exploration
    for second in range(1, 4):
        switch.explored(Explored(0.0, 0.0, 1.0), float(second))

    assert then == Exploration(0.0)
    assert switch.engine.exploration == Exploration(0.25)
    assert switch.budget.cost_s == 0.2


async def test_a_decision_under_way_keeps_the_engine_it_has():
    """The engine is one value: nobody sees half of a change."""
    switch = a_switch(name="random")
    before = switch.engine

    await switch.switch("round_robin")

    assert before.policy.name == "random"
    assert switch.engine is not before


async def test_a_reload_puts_the_changed_script_in_force(script):
    switch = a_switch(script=script.path)
    assert preferred(switch) == "b"
    first = switch.describe()["script"]

    script("c")
    swap = await switch.reload()

    assert preferred(switch) == "c"
    assert switch.describe()["script"] == {"path": str(script.path), "sha256": swap.sha256}
    assert swap.sha256 != first["sha256"]


async def test_a_refused_reload_leaves_the_old_script_in_force(script):
    switch = a_switch(script=script.path)
    script.path.write_text("import os\n")

    with pytest.raises(ScriptError):
        await switch.reload()

    assert preferred(switch) == "b"
    assert switch.epoch == 1


async def test_without_a_script_there_is_nothing_to_reload():
    with pytest.raises(ConfigError, match=r"policy\.script"):
        await a_switch(name="random").reload()


async def test_the_script_can_be_left_and_taken_up_again(script):
    switch = a_switch(script=script.path)
    await switch.switch("random")
    assert switch.script is None

    swap = await switch.switch("script")

    assert (swap.policy, preferred(switch)) == ("script", "b")
    assert "script" in switch.describe()["available"]


def timeouts(switch, number, now_s=0.0):
    for _ in range(number):
        switch.fell_back(TIMED_OUT + " (5 ms)", now_s)


async def test_a_script_that_keeps_running_out_of_time_gives_way_to_its_predecessor(script):
    switch = a_switch(script=script.path)
    script("c")
    await switch.reload()

    timeouts(switch, 2)
    assert preferred(switch) == "c"
    timeouts(switch, 1)

    assert preferred(switch) == "b"


async def test_a_script_without_a_predecessor_gives_way_to_the_fallback(script):
    switch = a_switch(script=script.path, fallback="round_robin")

    timeouts(switch, 3)

    assert switch.engine.policy.name == "round_robin"


async def test_a_condemned_script_is_not_its_own_predecessor(script):
    """A reload that was refused must not make the script in force its own way out."""
    switch = a_switch(script=script.path, fallback="round_robin")
    script.path.write_text("not python")
    with pytest.raises(ScriptError):
        await switch.reload()

    timeouts(switch, 3)

    assert switch.engine.policy.name == "round_robin"


def test_other_failures_and_timeouts_far_apart_do_not_condemn_a_script(script):
    switch = a_switch(script=script.path)

    for _ in range(10):
        switch.fell_back("policy.py:1: score raised ValueError", 0.0)
    for minute in range(10):
        timeouts(switch, 1, now_s=61.0 * minute)

    assert switch.engine.policy.name == "script"


def test_a_built_in_policy_collects_no_strikes():
    switch = a_switch(name="random")

    timeouts(switch, 10)

    assert switch.engine.policy.name == "random"


async def test_two_reloads_at_once_both_end_in_the_script_of_the_file(script):
    switch = a_switch(script=script.path)
    script("c")

    await asyncio.gather(switch.reload(), switch.reload())

    assert preferred(switch) == "c"
    assert switch.epoch == 3


# -- weights


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "some.npz"
    save(some_weights(), path)
    return path


def test_a_config_names_the_weights(weights_file):
    settings = parse(f"policy: {{name: learned, options: {{weights: {weights_file}}}}}".encode(), "config")

    assert PolicySwitch(settings).engine.policy.version == VERSION


def test_without_weights_the_learned_policy_takes_the_shipped_ones():
    assert a_switch(name="learned").engine.policy.version == learned().version


def test_weights_that_are_refused_stop_the_start(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"")

    with pytest.raises(WeightsError, match="not a whole"):
        a_switch(name="learned", options={"weights": str(tmp_path / "bad.npz")})


async def test_weights_that_are_refused_later_change_nothing(weights_file):
    switch = a_switch(name="learned", options={"weights": str(weights_file)})

    with pytest.raises(WeightsError):
        await switch.switch("learned", {"weights": "/nowhere.npz"})

    assert (switch.engine.policy.version, switch.epoch) == (VERSION, 1)


async def test_other_weights_are_one_switch(weights_file):
    switch = a_switch(name="learned")

    await switch.switch("learned", {"weights": str(weights_file)})

    assert switch.engine.policy.version == VERSION


@pytest.mark.parametrize(
    ("name", "option", "value", "says"),
    [
        pytest.param("learned", "weights", 3.0, "option 'weights' of policy 'learned' is 3.0; give text", id="number"),
        pytest.param("least_request", "cold_start_penalty", "much", "is 'much'; give a number", id="text"),
    ],
)  # fmt: skip
def test_an_option_of_the_wrong_kind_is_refused(name, option, value, says):
    with pytest.raises(ConfigError, match=says):
        a_switch(name=name, options={option: value})


def test_a_number_that_is_written_as_text_is_one():
    """Environment variables have nothing else."""
    switch = a_switch(name="least_request", options={"cold_start_penalty": "9"})

    assert switch.engine.policy.cold_start_penalty == 9.0


# -- published weights


def published(version="2"):
    return replace(learned(), version=version)


def test_published_weights_take_the_place_of_learned_ones():
    switch = a_switch()

    swap = switch.take(published(), Fence(7, 2))

    assert (swap.policy, switch.engine.policy.version) == ("learned", "2")
    assert switch.describe()["published"] == [7, 2]


def test_published_weights_explore_as_much_as_any_policy():
    switch = a_switch(exploration=0.1)

    switch.take(published(), Fence(7, 2))

    assert switch.engine.exploration == Exploration(0.1)


def test_a_policy_that_an_operator_chose_does_not_give_way():
    switch = a_switch(name="random")

    assert switch.take(published(), Fence(7, 2)) is None
    assert switch.engine.policy.name == "random"


def test_what_decided_in_an_earlier_epoch_stays_known():
    switch = a_switch()
    before = switch.epoch
    switch.take(published(), Fence(7, 2))
    switch.take(published("3"), Fence(7, 3))

    assert switch.published(before) == NOTHING
    assert switch.published(switch.epoch - 1) == Fence(7, 2)
    assert switch.published(switch.epoch) == Fence(7, 3)


def test_published_weights_are_let_go_and_come_back():
    switch = a_switch()
    switch.take(published(), Fence(7, 2))

    switch.let_go()
    without = switch.engine.policy.name
    switch.take(published(), Fence(7, 2))

    assert (without, switch.engine.policy.name) == ("hot_cold", "learned")


def test_weights_that_were_not_published_are_not_let_go():
    switch = a_switch()

    switch.let_go()

    assert switch.engine.policy.name == "learned"


async def test_what_an_operator_chose_after_they_were_let_go_stays():
    switch = a_switch()
    switch.take(published(), Fence(7, 2))
    switch.let_go()

    await switch.switch("random")

    assert switch.take(published(), Fence(7, 2)) is None


def test_not_every_epoch_is_remembered_for_ever():
    switch = a_switch()
    for version in range(1, 1000):
        switch.take(published(), Fence(7, version))

    assert switch.published(switch.epoch) == Fence(7, 999)
    assert len(switch._fences) <= 256
