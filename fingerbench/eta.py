"""How long a build will still take, learnt from what it has made so far."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from fingerbench.cost import Effort
from fingerbench.store import Spec

log = logging.getLogger(__name__)


class Eta:
    """Seconds of what is not made, by its effort and by the speed at which its kind of network went in this build.

    FLOP alone mislead: on a CPU those of a depthwise network take many times longer. A network that was not met yet
    counts as fast as all so far together.
    """

    def __init__(self, effort: Callable[[Spec], Effort]) -> None:
        self._ask = effort
        self._efforts: dict[str, Effort] = {}
        self._made: list[tuple[Spec, float]] = []
        self._seconds: Counter[str] = Counter()
        self._flop: Counter[str] = Counter()

    def effort(self, spec: Spec) -> Effort:
        """Return how much there is to do for `spec`: nothing where that cannot be told, as for a network of yours."""
        if spec.key not in self._efforts:
            try:
                self._efforts[spec.key] = self._ask(spec)
            except Exception as error:  # noqa: BLE001 - whatever it is, a guess at the time must not stop a build
                log.debug("no guess how long %s takes: %s", spec.label, error)
                self._efforts[spec.key] = Effort(spec.kind, 0.0)
        return self._efforts[spec.key]

    def learn(self, spec: Spec, seconds: float) -> None:
        """Note how long it took to make `spec`."""
        self._made.append((spec, seconds))  # how much that was is worked out where somebody wants to know

    def seconds(self, spec: Spec) -> float | None:
        """Return how long `spec` takes; None where nothing was learnt yet."""
        while self._made:
            made, took = self._made.pop()
            self._seconds[self.effort(made).group] += took  # type: ignore[assignment]
            self._flop[self.effort(made).group] += self.effort(made).flop  # type: ignore[assignment]
        effort = self.effort(spec)
        flop, seconds = self._flop[effort.group], self._seconds[effort.group]
        if not flop:
            flop, seconds = self._flop.total(), self._seconds.total()
        return effort.flop * seconds / flop if flop else None

    def left(self, waiting: Iterable[Spec], running: Iterable[tuple[Spec, float]], workers: int) -> float | None:
        """Return the seconds left: the work shared by `workers`, but no less than the longest piece of it.

        running: what is being made, with the seconds it has taken so far. None where nothing was learnt yet.
        """
        pieces = [(self.seconds(spec), elapsed) for spec, elapsed in [*((spec, 0.0) for spec in waiting), *running]]
        left = [max(0.0, seconds - elapsed) for seconds, elapsed in pieces if seconds is not None]
        if len(left) < len(pieces):
            return None
        return max(sum(left) / workers, max(left, default=0.0))
