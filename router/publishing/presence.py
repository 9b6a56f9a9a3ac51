"""Who is there: small values that processes put into the store every second or two, and that expire when they stop."""

import json
from collections.abc import Mapping
from typing import Any, Final

from router.store.store import Store

#: Family of the learner's value, put every second: JSON, as :mod:`router.learner_lines` tells it to people.
LEARNER: Final = "learner"
#: Family of what each router serves, by a name of the process.
REPLICAS: Final = "replicas"
EXPIRES_S: Final = 10.0
_LARGEST_BYTES: Final = 64 * 1024


def tell(store: Store, family: str, key: str, facts: Mapping[str, Any]) -> None:
    """Put the value.

    Raises:
        StoreError: if the store does not take it.
    """
    store.put(family, key, json.dumps(facts, separators=(",", ":"), default=str).encode(), EXPIRES_S)


def present(store: Store, family: str) -> dict[str, dict[str, Any]]:
    """By key, what is there and can be read: nothing of it is trusted, and nothing depends on it but what people see.

    Raises:
        StoreDownError: if the store cannot be reached.
    """
    found = {}
    for key, data in store.values(family).items():
        try:
            facts = json.loads(data) if len(data) <= _LARGEST_BYTES else None
        except (ValueError, RecursionError):
            facts = None
        if isinstance(facts, dict):
            found[key] = facts
    return found
