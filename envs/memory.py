"""The GPU memory of a node: which models are resident, what their KV cache holds, and who has to leave."""

from math import inf

from ccr.timing import GIB, GpuSpec, activation_bytes
from envs.lane import Key, Lane, Sequence
from envs.prefix import PrefixCache
from envs.words import NeverFitsError


class Memory:
    """Weights, activations and KV cache of the models on one card; bytes throughout.

    The KV cache is one pool for all models: what an engine may fill, less weights and activations. The prefix cache has
    what running sequences leave of it, and counts as free.

    Args:
        gpu: the card.
    """

    def __init__(self, gpu: GpuSpec) -> None:
        self._gpu = gpu
        self._budget = gpu.budget_bytes
        self._loading: Lane | None = None
        self._weights = 0
        self.resident: list[Lane] = []
        self.kv_budget = self._budget
        self.prefix = PrefixCache()
        self.peak = 0.0

    def clear(self) -> None:
        """As on a node that just started; the peak stays."""
        self._loading = None
        self.resident = []
        self.prefix = PrefixCache()
        self._changed()

    @property
    def kv(self) -> int:
        """KV cache in use."""
        return sum(lane.kv_held for lane in self.resident)

    @property
    def used(self) -> float:
        """Weights, activations and the KV cache in use."""
        return self._weights + self.kv + activation_bytes(self._models)

    def reserve(self, lane: Lane) -> None:
        """Hold room for weights on their way."""
        self._loading = lane
        self._changed()

    def arrive(self, lane: Lane) -> None:
        """The weights are here."""
        self._loading = None
        self.resident.append(lane)
        self._changed()

    def leave(self, lane: Lane) -> None:
        """The weights are gone."""
        self.resident.remove(lane)
        self.prefix.drop([queue.model for queue in lane.queues])
        self._changed()

    def trim(self) -> None:
        """Running sequences took KV cache, or there is less: the prefix cache keeps the rest."""
        self.prefix.trim(self.kv_budget - self.kv)

    def note_peak(self) -> None:
        """Remember the most that was used."""
        self.peak = max(self.peak, self.used)

    def refuse_what_never_fits(self, lane: Lane, tokens: int) -> None:
        """Raise :class:`NeverFitsError` when the model alone cannot hold ``tokens`` of context."""
        need = lane.weights + activation_bytes(1) + tokens * lane.kv
        if need > self._budget:
            raise NeverFitsError(
                f"{lane.model!r} with {tokens} tokens needs {need / GIB:.1f} GiB, {self._gpu.name} has "
                f"{self._budget / GIB:.1f} for models; send fewer tokens, or use a smaller model or a larger card"
            )

    def refuse_what_does_not_fit_now(self, lane: Lane) -> None:
        """Raise :class:`NeverFitsError` when the model does not fit beside those that are resident."""
        if self._short(lane.weights, [], 1) > 0:
            beside = ", ".join(other.model for other in self.resident) or "nothing"
            raise NeverFitsError(
                f"{lane.model!r} ({lane.weights / GIB:.1f} GiB) does not fit beside {beside} in "
                f"{self._budget / GIB:.1f} GiB; start the node with fewer models resident"
            )

    def make_room(self, need: float, key: Key, lane: Lane, arriving: int) -> list[Lane] | None:
        """Who has to leave so that ``need`` bytes are free; ``None`` when it is not possible yet.

        Idle models leave, least preferred first and among equals least recently used first. When they are not enough,
        busy ones are closed to work younger than ``key`` and drain; work at an infinite ``key`` closes nobody.

        Args:
            need: bytes, without the activations of an arriving model.
            key: place of the work the room is for.
            lane: whose work it is; it never leaves.
            arriving: 1 when the lane brings its weights, 0 when it wants KV cache.
        """
        victims = self._victims(need, key, lane, arriving)
        if victims is None:
            return None
        self.reopen()
        busy = [victim for victim in victims if victim.busy_for(key)]
        if not busy:
            return victims
        if key[0] < inf:
            for victim in busy:
                victim.closed_after = key
        return None

    def reopen(self) -> None:
        """Nobody has to leave any more."""
        for lane in self.resident:
            lane.closed_after = None

    def newest(self) -> Sequence:
        """The sequence admitted last; there is one."""
        last = [next(reversed(lane.running.values())) for lane in self.resident if lane.running]
        return max(last, key=lambda sequence: sequence.number)

    def _victims(self, need: float, key: Key, lane: Lane, arriving: int) -> list[Lane] | None:
        others = [other for other in self.resident if other is not lane]
        # Idle before busy; a model once closed stays the one to go.
        others.sort(key=lambda o: (o.busy_for(key), o.closed_after is None, o.own.weight, o.last_used_s))
        for count in range(len(others) + 1):
            if self._short(need, others[:count], arriving) <= 0:
                return others[:count]
        return None

    def _short(self, need: float, without: list[Lane], arriving: int) -> float:
        """Bytes missing for ``need`` if the models in ``without`` were gone."""
        freed = sum(lane.weights + lane.kv_held for lane in without)
        activations = activation_bytes(self._models - len(without) + arriving)
        return need + self._weights + self.kv - freed + activations - self._budget

    def _changed(self) -> None:
        self._weights = sum(lane.weights for lane in self.resident)
        if self._loading is not None:
            self._weights += self._loading.weights
        self.kv_budget = self._budget - self._weights - activation_bytes(self._models)
        self.trim()
        self.note_peak()

    @property
    def _models(self) -> int:
        return len(self.resident) + (self._loading is not None)
