"""Who is asking, and which models they may use: keys are kept as hashes, and deny is the default."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ccr.settings import KeySettings
from router.refusals import Refusal


@dataclass(slots=True)
class Tenant:
    """An API key's holder.

    Args:
        name: for logs and metrics.
        models: model names it may use; ``*`` for all.
        max_inflight: its requests in flight; 0 for no limit.
        inflight: now.
    """

    name: str
    models: frozenset[str]
    max_inflight: int = 0
    inflight: int = 0

    def may_use(self, model: str) -> bool:
        """Whether the model, by name without version, is on the list."""
        return "*" in self.models or model in self.models


class Keys:
    """The configured API keys; with none configured anyone may do anything.

    Args:
        settings: the keys, hashed.

    Attributes:
        anyone: who asks where no keys are configured.
    """

    def __init__(self, settings: Sequence[KeySettings]) -> None:
        self.anyone: Final = Tenant(name="", models=frozenset({"*"}))
        self._tenants = {
            key.hash.removeprefix("sha256:"): Tenant(key.name, frozenset(key.models), key.max_inflight)
            for key in settings
        }

    @property
    def are_required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._tenants)

    @property
    def tenants(self) -> list[Tenant]:
        """Everyone with a key."""
        return list(self._tenants.values())

    def tenant(self, headers: Mapping[bytes, bytes]) -> Tenant:
        """The holder of the key in ``Authorization: Bearer`` or ``x-api-key``.

        Keys carry 256 random bits, so their digest can be looked up: timing tells nothing about a key.

        Raises:
            Refusal: 401 if a key is needed and missing or unknown.
        """
        if not self._tenants:
            return self.anyone
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not given:
            given = headers.get(b"x-api-key", b"")
        found = self._tenants.get(hashlib.sha256(given.strip()).hexdigest()) if given else None
        if found is None:
            what = "is not known here" if given else "is missing"
            raise Refusal(401, "invalid_api_key", f"the API key {what}; send it as Authorization: Bearer KEY")
        return found


def new_key() -> tuple[str, str]:
    """A fresh key and its hash as the config takes it."""
    key = "ccr-" + secrets.token_urlsafe(32)
    return key, "sha256:" + hashlib.sha256(key.encode()).hexdigest()
