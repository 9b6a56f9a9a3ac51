"""Makes the environment known to gymnasium by name, without importing it."""

from typing import Final

import gymnasium

ID: Final = "ccr/FleetRouting-v0"


def register() -> None:
    """Register :data:`ID` once; gymnasium imports the environment when it is made."""
    if ID not in gymnasium.registry:
        gymnasium.register(id=ID, entry_point="envs.routing_env:RoutingEnv")
