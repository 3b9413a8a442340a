"""The owner's own models, from which methods learn: imitations of stolen and of independent ones. None is a suspect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from typing import Any, NamedTuple, Protocol

from fingerbench.errors import UserError, is_whole, require
from fingerbench.records import Half
from fingerbench.zoo.model import Attack, ModelSpec
from fingerbench.zoo.table import Zoo


class Pair(NamedTuple):
    """The surrogates of a zoo."""

    positives: tuple[ModelSpec, ...]  # the source first
    negatives: tuple[ModelSpec, ...]


class Surrogates(Protocol):
    """A plan: which surrogates there are."""

    def specs(self, zoo: Zoo) -> Pair:
        """Return what to make in a zoo. Names, and so seeds, are no suspect's.

        What derives from an independent model follows it: a method may hold out the last third of each kind to
        validate, and has other lineages there.
        """
        ...


@dataclass(frozen=True)
class Shared:
    """What FingerBench gives every method: students of the source; independent models and students of the first.

    positives, scratch, distilled: architectures. halves: of the data, that the independent models are trained on, in
    turn; with two, their students are those of the first and the second, in turn.
    """

    positives: tuple[str, ...]
    scratch: tuple[str, ...]
    distilled: tuple[str, ...]
    distill: Attack
    halves: tuple[Half, ...] = ("B",)

    def __post_init__(self) -> None:
        _require_halves(self.halves, self.scratch)

    def specs(self, zoo: Zoo) -> Pair:
        """Return the source and its students; the independent models, each followed by its students."""
        source, independent = zoo.original(), _independent(zoo, self.scratch, self.halves)
        positives = (source, *self._students(zoo, "positive", self.positives, [source]))
        students = [*self._students(zoo, "negative-distilled", self.distilled, independent[: len(self.halves)])]
        negatives = ((model, *(s for s in students if s.parent == model)) for model in independent)
        return Pair(positives, tuple(chain.from_iterable(negatives)))

    def _students(
        self, zoo: Zoo, sign: str, architectures: Sequence[str], teachers: Sequence[ModelSpec]
    ) -> Iterator[ModelSpec]:
        for number, (architecture, teacher) in enumerate(zip(architectures, cycle(teachers), strict=False)):
            name = f"surrogate/{sign}/{number}-{architecture}"
            yield zoo.derived(name, architecture, teacher, self.distill, architecture)


@dataclass(frozen=True)
class Augmented:
    """What MetaFinger makes for itself (Yang et al., IJCAI 2022): few models, and modified copies of each.

    positives: variants of `copy`, one copy of the source for each; scratch: architectures of the independent models;
    copies: variants of `copy`, one copy of each independent model for each, as many as the augmentation factor.
    halves: of the data, that the independent models are trained on, in turn.
    negatives, factor: how many of `scratch` and of `copies`, from the first on; None: all. What a model is does not
    hang on them, so that plans which differ in nothing else share models.
    """

    positives: tuple[str, ...]
    scratch: tuple[str, ...]
    copies: tuple[str, ...]
    copy: Attack
    halves: tuple[Half, ...] = ("B",)
    negatives: int | None = None
    factor: int | None = None

    def __post_init__(self) -> None:
        _require_halves(self.halves, self.scratch)
        for key, value, least, most in (
            ("negatives", self.negatives, 1, len(self.scratch)),
            ("factor", self.factor, 0, len(self.copies)),
        ):
            sound = value is None or (is_whole(value) and least <= value <= most)
            require(sound, f"surrogates.{key}", f"null or a whole number from {least} to {most}", value)

    def specs(self, zoo: Zoo) -> Pair:
        """Return the source and its copies; each independent model, followed by its copies."""
        source, independent = zoo.original(), _independent(zoo, self.scratch[: self.negatives], self.halves)
        copies = self.copies[: self.factor]
        positives = self._with_copies(zoo, source, "surrogate/positive", self.positives)
        negatives = (spec for model in independent for spec in self._with_copies(zoo, model, model.name, copies))
        return Pair(tuple(positives), tuple(negatives))

    def _with_copies(self, zoo: Zoo, base: ModelSpec, name: str, variants: Sequence[str]) -> Iterator[ModelSpec]:
        yield base
        for number, variant in enumerate(map(str, variants)):
            yield zoo.derived(f"{name}/copy-{number}-{variant}", base.architecture, base, self.copy, variant)


def _independent(zoo: Zoo, architectures: Sequence[str], halves: Sequence[Half]) -> list[ModelSpec]:
    return [
        zoo.trained(f"surrogate/negative/{number}-{architecture}", architecture, half)
        for number, (architecture, half) in enumerate(zip(architectures, cycle(halves), strict=False))
    ]


def _require_halves(halves: Sequence[str], scratch: Sequence[str]) -> None:
    sound = isinstance(halves, list | tuple) and 0 < len(halves) <= len(scratch) and {*halves} <= {"A", "B"}
    require(sound, "surrogates.halves", "a list of A and B, no longer than surrogates.scratch", halves)


def checked(made: Any, source: ModelSpec) -> Pair:
    """Return what a plan gives.

    Raises:
        UserError: it is no pair of models with the source first, or has one twice.
    """
    sound = isinstance(made, tuple) and len(made) == 2 and all(isinstance(side, list | tuple) for side in made)
    sound = sound and all(isinstance(spec, ModelSpec) for spec in chain(*made))
    require(sound, "surrogates", "`specs` to return a Pair of tuples of models", type(made).__name__)
    positives, negatives = map(tuple, made)
    first = positives[0].name if positives else None
    require(positives[:1] == (source,), "surrogates", "the source as the first positive", first)
    twice = [name for name, count in Counter(spec.name for spec in chain(*made)).items() if count > 1]
    require(not twice, "surrogates", "no model more than once", twice)
    return Pair(positives, negatives)


def refuse_overlap(surrogates: Sequence[ModelSpec], zoo: Sequence[ModelSpec], source: ModelSpec) -> None:
    """Raise a UserError if a surrogate other than the source is a suspect too: the method would be tuned on the test.

    Two specs are one model if their keys are equal, whatever their names.
    """
    known = {spec.key: spec.name for spec in zoo if spec.key != source.key}
    for spec in surrogates:
        if spec.key in known:
            raise UserError(
                f"the surrogate {spec.name} is the suspect {known[spec.key]}: expected surrogates disjoint from the "
                "zoo; give it a name or a seed of its own"
            )
