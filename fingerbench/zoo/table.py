"""Which models there are: the 154 suspects of FingerBench, one row each, and what all models of a zoo share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fingerbench.data.augment import Augment
from fingerbench.errors import require
from fingerbench.nets import foreign, require_known
from fingerbench.records import Half, Suspect
from fingerbench.seeds import seed_for
from fingerbench.zoo.given import Given
from fingerbench.zoo.model import Attack, ModelSpec
from fingerbench.zoo.train import Scratch

SOURCE = "source"
MIRROR = "mirror/"


def suspects(attacks: Mapping[str, Attack], source: str) -> tuple[Suspect, ...]:
    """Return every suspect of the families in `attacks`, in their order; `source` is the source's architecture.

    With all nine families of FingerBench: 63 positive and 91 negative ones (NaturalFinger, Yang et al. 2023, table 1).

    Raises:
        UserError: there is none, or variants are no list, or one that is empty or names something twice.
    """
    for family, attack in attacks.items():
        _require_variants(family, attack)
    rows = tuple(row for family, attack in attacks.items() for row in _family(family, attack, source))
    require(bool(rows), "attack", "families of one suspect or more, or more zoo.architectures", list(attacks))
    return rows


def _require_variants(family: str, attack: Attack) -> None:
    variants = attack.variants
    key = f"attack.{family}.variants{' (zoo.architectures unless set)' if attack.students else ''}"
    require(isinstance(variants, list | tuple), key, "a list, such as [resnet18] or ['0.5']", variants)
    require(family == SOURCE or len(variants) > 0, key, "a list of one or more", variants)
    names = _variants(attack)
    require(len(set(names)) == len(names), key, "a list that names each once", names)


def _variants(attack: Attack) -> list[str]:
    return [str(variant) for variant in attack.variants]  # YAML takes 0.5 for a number


def _family(family: str, attack: Attack, source: str) -> Iterator[Suspect]:
    if family == SOURCE:
        yield Suspect(SOURCE, SOURCE, None, None, source, None, "A", True, None)
        yield Suspect(MIRROR + SOURCE, SOURCE, None, None, source, None, "B", False, SOURCE)
    elif family == "scratch":
        for architecture in _others(attack, source):
            yield Suspect(f"scratch/{architecture}", family, None, architecture, architecture, None, "B", False, None)
    elif family == "same-half":
        for architecture in _variants(attack):
            yield Suspect(f"same-half/{architecture}", family, None, architecture, architecture, None, "A", False, None)
    elif family == "scratch-distill":
        for teacher in _others(attack, source):
            name, parent = f"scratch-distill/{teacher}", f"scratch/{teacher}"
            yield Suspect(name, family, "distill", teacher, source, parent, "B", False, None)
    else:
        yield from _thefts(family, attack, source)


def _others(attack: Attack, source: str) -> list[str]:
    return [architecture for architecture in _variants(attack) if architecture != source]


def _thefts(family: str, attack: Attack, source: str) -> Iterator[Suspect]:
    sides: list[tuple[str, Half, str]] = [("", "A", SOURCE), (MIRROR, "B", MIRROR + SOURCE)]
    for prefix, half, parent in sides:
        for variant in _variants(attack):
            theft = f"{family}/{variant}"
            architecture = variant if attack.students else source
            mirror_of = theft if prefix else None
            name = prefix + theft
            yield Suspect(name, family, family, variant, architecture, parent, half, not prefix, mirror_of)


@dataclass(frozen=True)
class Zoo:
    """The settings that all models of one zoo share, and the specs that follow from them."""

    data: str  # digest of the data set
    classes: int
    source: str
    width: float  # of fingerbench's own networks; others are as they are
    augment: Augment
    precision: str
    seed: int
    scratch: Scratch
    given: Given | None = None  # the source, where it is not trained

    def spec(self, suspect: Suspect, attacks: Mapping[str, Attack]) -> ModelSpec:
        """Return what to make for a suspect. Its seed hangs on its name alone, so no suspect disturbs another."""
        if suspect.parent is None:
            return self._base(suspect.name, suspect.architecture, suspect.half)
        parent = self._parent(suspect)
        attack, variant = attacks[suspect.family], suspect.variant or ""
        return self.derived(suspect.name, suspect.architecture, parent, attack, variant)

    def original(self) -> ModelSpec:
        """Return the source model: trained, or given."""
        return self._base(SOURCE, self.source, "A")

    def _parent(self, suspect: Suspect) -> ModelSpec:
        architecture = suspect.variant if suspect.family == "scratch-distill" else self.source
        return self._base(suspect.parent or "", architecture or "", suspect.half)

    def _base(self, name: str, architecture: str, half: Half) -> ModelSpec:
        """Return a model that is made of no other; all are trained but a source that is given."""
        if self.given and name == SOURCE:
            return self._model(name, architecture, half, self.given, architecture, None)
        return self.trained(name, architecture, half)

    def trained(self, name: str, architecture: str, half: Half) -> ModelSpec:
        """Return a model trained from random weights on a half of the data. Its seed hangs on its name."""
        return self._model(name, architecture, half, self.scratch, architecture, None)

    def derived(self, name: str, architecture: str, parent: ModelSpec, attack: Attack, variant: str) -> ModelSpec:
        """Return what an attack makes of a model. Its seed hangs on its name.

        Raises:
            UserError: the attack takes no such variant.
        """
        if hasattr(attack, "check"):
            attack.check(variant)
        return self._model(name, architecture, parent.half, attack, variant, parent)

    def _model(
        self, name: str, architecture: str, half: Half, attack: Attack, variant: str, parent: ModelSpec | None
    ) -> ModelSpec:
        require_known(architecture)  # before anything is built
        return ModelSpec(
            name=name,
            data=self.data,
            classes=self.classes,
            architecture=architecture,
            width=1.0 if foreign(architecture) else self.width,
            half=half,
            augment=self.augment,
            attack=attack,
            variant=variant,
            parent=parent,
            precision=self.precision,
            seed=seed_for(self.seed, "zoo", name),
        )
