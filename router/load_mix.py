"""What a load sends: requests drawn from a seed, and prompts of the right length made of nothing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from random import Random

#: Real tokenisers need about one token for a short word and its space: 4 bytes per token.
BYTES_PER_TOKEN = 4
_WORDS = "sun map ink oak dew fog jar key lid mud net owl pen ray sky tin urn vat wax yew zip arc bay cob "
_HEAD_TOKENS = 4  # 15 hex digits and a space: no two prompts share a prefix but those of one session.


@dataclass(frozen=True, slots=True)
class Shot:
    """One request to be sent.

    Args:
        model: as the client names it: ``name`` or ``name@version``.
        prompt_tokens: length of the prompt, >= 1.
        output_tokens: tokens asked for, >= 1.
        version: sent as ``x-model-version``; empty: not sent.
        session: sent as ``x-session-id``; empty: not sent.
        priority: sent as ``x-ccr-priority``; 0: not sent.
        stream: whether the answer is asked for as a stream.
        number: makes the prompt's text different from the others'; within a session, all begin alike.
    """

    model: str
    prompt_tokens: int
    output_tokens: int
    version: str = ""
    session: str = ""
    priority: int = 0
    stream: bool = False
    number: int = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal lengths in tokens, clipped.

    Args:
        median: half of the draws are shorter.
        sigma: spread of the logarithm.
        low: shortest.
        high: longest.
    """

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, rng: Random) -> int:
        """A length in [``low``, ``high``]."""
        return min(max(round(rng.lognormvariate(math.log(self.median), self.sigma)), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Mix:
    """Independent requests over a few models.

    Args:
        models: what a request may name, with its weight; see :func:`zipf`.
        prompt: lengths of prompts.
        output: lengths of answers.
        stream_share: share of requests that ask for a stream, in [0, 1].
    """

    models: Sequence[tuple[str, float]]
    prompt: Lengths = Lengths(96, 0.5, 32, 256)
    output: Lengths = Lengths(24, 0.5, 8, 64)
    stream_share: float = 0.0

    def shots(self, seed: int, client: int = 0) -> Iterator[Shot]:
        """Requests without end; the same for the same seed and client, whatever the other clients do."""
        rng = Random(f"{seed}/{client}")
        names = [name for name, _ in self.models]
        bounds = list(accumulate(weight for _, weight in self.models))
        while True:
            yield Shot(
                model=rng.choices(names, cum_weights=bounds)[0],
                prompt_tokens=self.prompt.draw(rng),
                output_tokens=self.output.draw(rng),
                stream=rng.random() < self.stream_share,
                number=rng.getrandbits(60),
            )


def zipf(names: Sequence[str], exponent: float = 1.0) -> list[tuple[str, float]]:
    """Each name with its share, the first the most popular: 1, 1/2**e, 1/3**e, ... scaled to sum to 1."""
    raw = [1.0 / rank**exponent for rank in range(1, len(names) + 1)]
    return [(name, weight / sum(raw)) for name, weight in zip(names, raw, strict=True)]


def prompt_of(shot: Shot) -> str:
    """The text of a request: in a session, a longer prompt repeats a shorter one and goes on, as conversations do."""
    if not shot.session:
        return prompt_text(shot.prompt_tokens, shot.number)
    digest = blake2b(shot.session.encode(), digest_size=8).digest()
    return prompt_text(shot.prompt_tokens, int.from_bytes(digest))


def prompt_text(tokens: int, number: int = 0) -> str:
    """About ``tokens`` tokens of text that means nothing; ``number`` makes it differ from the first word on."""
    size = tokens * BYTES_PER_TOKEN
    head = f"{number & (16**15 - 1):015x} "[: _HEAD_TOKENS * BYTES_PER_TOKEN]
    body = _WORDS * (size // len(_WORDS) + 1)
    return (head + body)[:size]
