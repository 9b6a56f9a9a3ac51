"""Versions of the trained policy in MLflow: plain files and tags, never a pickled model; aliases say which one counts.

``challenger`` is what was trained last, ``champion`` what passed the gate. Each move of the champion is a tag of its
own on the registered model: who, when, why, and what it was before.
"""

import getpass
import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ccr import weights
from ccr.errors import WeightsError
from ccr.policies.network import Network
from rl.tracking import FILE, FOLDER, Tracking, log_training
from rl.versions import (
    CHALLENGER,
    CHAMPION,
    GATE,
    Move,
    RegistryError,
    RunFacts,
    Version,
    gate_of,
    objection_to,
    standing,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL: Final = "ccr-policy"
"""Name of the registered model, and of the experiment its runs are in."""
_VERDICTS: Final = "gate"
_SHA256: Final = "ccr.sha256"
_LABEL: Final = "ccr.version"
_GATE: Final = "ccr.gate"
_MOVE: Final = "ccr.champion."
_MOST_VERSIONS: Final = 10_000
_HEX: Final = re.compile("[0-9a-f]{64}")


class Registry:
    """The registered model at a tracking URI; nothing is imported or opened before it is needed.

    Args:
        uri: as of :class:`rl.tracking.Tracking`.
    """

    def __init__(self, uri: str = "") -> None:
        self._tracking = Tracking(uri)
        self.uri = self._tracking.uri

    # -- reading

    def versions(self) -> list[Version]:
        """Every version, oldest first."""
        if self._tracking.is_new:
            return []
        with self._tracking.asked() as client:
            found = client.search_model_versions(f"name='{MODEL}'", max_results=_MOST_VERSIONS)
            aliases = self._aliases(client) if found else {}
        return sorted((_version(one, aliases) for one in found), key=lambda one: one.number)

    def get(self, which: str | int) -> Version:
        """A version by its number or alias.

        Raises:
            RegistryError: if there is none; it names what there is.
        """
        versions = self.versions()
        wanted = str(which).strip()
        for one in versions:
            if wanted in {str(one.number), f"v{one.number}", *one.aliases}:
                return one
        there = (
            ", ".join(str(one.number) for one in versions) or "none yet: `ccr train` registers what it trains"
        )
        aliases = sorted(alias for one in versions for alias in one.aliases)
        raise RegistryError(
            f"no version {wanted!r} of {MODEL} at {self.uri}; versions: {there}; aliases: {', '.join(aliases) or 'none'}"
        )

    def champion(self) -> Version | None:
        """The version that serves by right; ``None``: the weights that come with the package do."""
        return next((one for one in self.versions() if CHAMPION in one.aliases), None)

    def fetch(self, version: Version) -> Path:
        """A local copy of its weights, tried as a router would try them.

        Raises:
            RegistryError: if they are not there, or not those that were registered.
            WeightsError: if they are refused.
        """
        path = self.download(version)
        weights.load(path)
        return path

    def download(self, version: Version) -> Path:
        """A local copy of its weights, whatever features they are for; see :func:`ccr.weights.read`."""
        if _HEX.fullmatch(version.sha256) is None:
            raise RegistryError(
                f"version {version.number} has no checksum: `ccr` did not register it, do not use it"
            )
        path = cache_folder() / f"{version.sha256}.npz"
        if not _is(path, version.sha256):
            self._download(version, path)
        if not _is(path, version.sha256):
            path.unlink()
            raise RegistryError(
                f"the weights of version {version.number} are not those that were registered (sha256 "
                f"{version.sha256[:12]}): do not use it"
            )
        return path

    def run_of(self, version: Version) -> dict[str, Any]:
        """Params and metrics of the run that made it."""
        with self._tracking.asked() as client:
            data = client.get_run(version.run_id).data
        return {"params": dict(data.params), "metrics": dict(data.metrics)}

    def verdict(self, version: Version) -> dict[str, Any] | None:
        """The whole of its latest verdict; ``None`` before the first."""
        if not version.gate:
            return None
        with tempfile.TemporaryDirectory() as folder, self._tracking.asked() as client:
            local = client.download_artifacts(version.run_id, str(version.gate["artefact"]), folder)
            verdict: dict[str, Any] = json.loads(Path(local).read_text())
        return verdict

    def history(self) -> list[Move]:
        """Every move of the champion, oldest first."""
        if not self.versions():
            return []
        with self._tracking.asked() as client:
            tags = client.get_registered_model(MODEL).tags
        return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(_MOVE)]

    # -- writing

    def register(self, path: Path, facts: RunFacts | None = None) -> int:
        """Log a training run and make its weights a version, the challenger.

        Args:
            path: of the weights; they are tried first.
            facts: of the run.

        Returns:
            The number of the version.

        Raises:
            WeightsError: if the weights are refused.
        """
        facts = facts or RunFacts()
        loaded = weights.load(path)
        with self._tracking.asked() as client:
            run = client.create_run(
                self._tracking.experiment(client, MODEL), run_name=facts.name or loaded.version
            )
            try:
                log_training(client, run.info.run_id, path, loaded, facts)
            except BaseException:
                client.set_terminated(run.info.run_id, "FAILED")
                raise
            client.set_terminated(run.info.run_id)
            if not client.search_registered_models(f"name='{MODEL}'"):
                client.create_registered_model(
                    MODEL, description="Trained routing policies: plain .npz files."
                )
            made = client.create_model_version(
                MODEL, f"{run.info.artifact_uri}/{FOLDER}", run.info.run_id,
                tags={_SHA256: loaded.sha256, _LABEL: loaded.version, "ccr.schema": str(loaded.manifest["schema"])},
            )  # fmt: skip
            client.set_registered_model_alias(MODEL, CHALLENGER, str(made.version))
        return int(made.version)

    def store_verdict(self, version: Version, verdict: Mapping[str, Any]) -> None:
        """Keep a verdict with the version it is about: all of it as a file, what lists and promotions need as a tag.

        Args:
            version: judged.
            verdict: of :func:`rl.gate.verdict_of`.
        """
        when = verdict["manifest"]["when"]
        artefact = f"{_VERDICTS}/{when.replace(':', '')}.json"
        known = {**verdict, "when": when, "artefact": artefact}
        with self._tracking.asked() as client:
            client.log_text(version.run_id, json.dumps(verdict, indent=2), artefact)
            tag = json.dumps({name: known[name] for name in GATE})
            client.set_model_version_tag(MODEL, str(version.number), _GATE, tag)

    def promote(self, version: Version, why: str = "", *, force: bool = False) -> Move:
        """Make it the champion.

        Args:
            version: which one.
            why: in the operator's words; needed to force it.
            force: go past the gate; that is recorded.

        Raises:
            RegistryError: if it has not passed the gate against the present champion.
        """
        before = self.champion()
        if before is not None and before.number == version.number:
            raise RegistryError(f"version {version.number} is the champion already")
        objection = objection_to(version, before)
        if force and not why.strip():
            raise RegistryError("say why with --reason: it is kept with the champion")
        if objection and not force:
            raise RegistryError(
                f"version {version.number} is not promoted: {objection}. Run `ccr policy gate {version.number}`, or "
                "`ccr policy promote --force --reason TEXT`"
            )
        move = _move(
            "promote", version.number, before.number if before else None, why, forced=bool(objection)
        )
        self._moved(move)
        return move

    def rollback(self, why: str = "") -> Move:
        """Make the champion what it was before the promotion of the present one.

        Raises:
            RegistryError: if there is no champion, or it was not promoted from here.
        """
        champion = self.champion()
        if champion is None:
            raise RegistryError(f"there is no champion at {self.uri}: the shipped weights serve")
        promotions = standing(self.history())
        if not promotions or promotions[-1].version != champion.number:
            raise RegistryError(
                f"version {champion.number} became champion by other means than `ccr policy`, so what was before is not "
                "known; use `ccr policy promote` with the version you want"
            )
        move = _move("rollback", promotions[-1].before, champion.number, why)
        self._moved(move)
        return move

    # -- details

    def _aliases(self, client: "MlflowClient") -> dict[int, list[str]]:
        """Number -> aliases; a search for versions leaves them out."""
        found: dict[int, list[str]] = {}
        for alias, number in sorted(client.get_registered_model(MODEL).aliases.items()):
            found.setdefault(int(number), []).append(alias)
        return found

    def _download(self, version: Version, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, self._tracking.asked() as client:
            local = client.download_artifacts(version.run_id, f"{FOLDER}/{FILE}", folder)
            Path(local).replace(path)

    def _moved(self, move: Move) -> None:
        """Move the alias, and say so in a tag; the tag comes first, so that no move goes unrecorded."""
        count = len(self.history())
        with self._tracking.asked() as client:
            said = {name: getattr(move, name) for name in Move.__slots__}
            client.set_registered_model_tag(MODEL, f"{_MOVE}{count + 1:06d}", json.dumps(said))
            if move.version is None:
                client.delete_registered_model_alias(MODEL, CHAMPION)
                return
            client.set_registered_model_alias(MODEL, CHAMPION, str(move.version))
            if CHALLENGER in self._aliases(client).get(move.version, []):
                client.delete_registered_model_alias(MODEL, CHALLENGER)


def cache_folder() -> Path:
    """Where fetched weights are kept, by their checksum."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return root / "ccr-autopilot" / "weights"


def _is(path: Path, sha256: str) -> bool:
    """Whether a file holds the arrays of this checksum."""
    if not path.exists():
        return False
    try:
        arrays, _ = weights.read(path)
        return weights.checksum(Network(**{name: arrays[name] for name in Network._fields})) == sha256
    except (WeightsError, KeyError):
        return False


def _version(found: "ModelVersion", aliases: Mapping[int, Sequence[str]]) -> Version:
    number, tags = int(found.version), found.tags
    return Version(
        number=number,
        label=tags.get(_LABEL, ""),
        aliases=tuple(aliases.get(number, ())),
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1e3, UTC).isoformat(timespec="seconds"),
        sha256=tags.get(_SHA256, ""),
        run_id=found.run_id or "",
        gate=gate_of(tags.get(_GATE, "")),
    )


def _move(action: str, version: int | None, before: int | None, why: str, *, forced: bool = False) -> Move:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return Move(action, version, before, f"{_user()}@{platform.node()}", when, why.strip(), forced)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, an id may have no name
        return str(os.getuid())
