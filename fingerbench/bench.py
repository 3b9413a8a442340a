"""The benchmark itself: a configuration, and everything that follows from it, made on demand.

The Python API begins with it:

    import fingerbench as fb

    bench = fb.open("data=digits")
    bench.suspects                 # 154 records
    bench.model("prune/0.9")       # [0, 1] images to outputs, eval mode
    bench.fingerprint("ipguard")   # queries and the labels of the source
    bench.scores("ipguard")        # a DataFrame, one row a suspect
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from fingerbench import config
from fingerbench.api import Fingerprinter
from fingerbench.cost import Sizes, effort
from fingerbench.data import digest, load
from fingerbench.data.augment import Augment
from fingerbench.errors import is_number, is_whole, require, unknown
from fingerbench.evaluate.evasions import Evasion, try_out
from fingerbench.evaluate.fid import FidSpec
from fingerbench.evaluate.specs import AccuracySpec, EvasionSpec, FingerprintSpec, ResponseSpec, fingerprint_of
from fingerbench.gans.spec import GanSpec
from fingerbench.nets import foreign, network, require_fitting
from fingerbench.pool import Pool
from fingerbench.records import Dataset, Fingerprint, Suspect
from fingerbench.seeds import seed_for
from fingerbench.store import Spec, Store, with_needs
from fingerbench.workshop import Workshop, pick_bfloat16, pick_compiled, pick_device, pick_jobs
from fingerbench.zoo.given import Given
from fingerbench.zoo.model import Attack, ModelSpec
from fingerbench.zoo.surrogates import Pair, Surrogates, checked, refuse_overlap
from fingerbench.zoo.table import Zoo, suspects

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Made = TypeVar("Made")
ZOO = ("data", "zoo", "attack", "precision")  # the settings that its models follow from


def open(*overrides: str) -> Bench:
    """Return the benchmark for command-line overrides such as "data=digits" or "store=DIR".

    Nothing is built yet.

    Raises:
        UserError: a name or key that does not exist.
    """
    return Bench(config.compose(overrides), overrides)


def _lent(*groups: str) -> Callable[[Callable[[Bench], Made]], cached_property[Made]]:
    """Return a decorator: a cached property that a benchmark takes from one of its lenders that agrees on `groups`."""

    def decorate(make: Callable[[Bench], Made]) -> cached_property[Made]:
        def get(bench: Bench) -> Made:
            for lender in bench.lenders:
                if all(lender._texts.get(group) == bench._texts.get(group, ...) for group in groups):
                    return cast(Made, getattr(lender, make.__name__))
            return make(bench)

        get.__doc__ = make.__doc__
        return cached_property(get)

    return decorate


class Bench:
    """A composed configuration and what follows from it: suspects, specs, models, fingerprints, scores.

    lenders: benchmarks whose data and specs this one takes over where they are the same.
    """

    def __init__(
        self,
        settings: DictConfig,
        overrides: Sequence[str] = (),
        data: Dataset | None = None,
        lenders: Sequence[Bench] = (),
    ) -> None:
        self.settings = settings
        self.overrides = tuple(overrides)
        self.store = Store(settings.store, settings.locks)
        self.lenders = tuple(lenders)
        if data is not None:
            self.data = data

    @cached_property
    def _texts(self) -> dict[str, str]:
        """The resolved settings by group, as texts, in which false is not 0 and order counts.

        None where one of them names a setting that there is not, which others report.
        """
        try:
            plain = cast(dict[str, Any], OmegaConf.to_container(self.settings, resolve=True))
        except OmegaConfBaseException:
            return {}
        return {group: json.dumps(value, default=str) for group, value in plain.items()}

    @_lent("data")
    def data(self) -> Dataset:
        """The data set, loaded and checked."""
        node = self.settings.data
        for key in ("name", "constants.augment"):
            found = OmegaConf.select(node, key)
            require(found is not None, f"data.{key}", "one, as in conf/data/imagefolder.yaml", None)
        return load(str(node.name), config.build(node))

    @_lent(*ZOO)
    def attacks(self) -> dict[str, Attack]:
        """The selected families, by name."""
        families = OmegaConf.select(self.settings, "attack")
        require(bool(families), "attack", "one family or more, such as attack=[source,prune]", families)
        expected = "files that begin with the name of a family, as conf/attack/prune.yaml does"
        require("_target_" not in families, "attack", expected, "a _target_ without one")
        return {str(family): self._family(family) for family in families}

    def _family(self, family: Any) -> Attack:
        key = f"attack.{family}"
        config.require_resolved(self.settings, key)
        node = OmegaConf.select(self.settings, key)
        sound = isinstance(node, DictConfig) and "_target_" in node
        require(sound, key, "the _target_ of an attack and its settings, as in conf/attack/prune.yaml", node)
        attack: Attack = config.build(node)
        lacking = [member for member in ("variants", "students", "make") if not hasattr(attack, member)]
        expected = "an attack, with variants, students and make, as fingerbench.zoo.model.Attack has them"
        require(not lacking, key, expected, f"{type(attack).__name__} without {', '.join(lacking)}")
        return attack

    @_lent(*ZOO)
    def suspects(self) -> tuple[Suspect, ...]:
        """One record for each selected suspect."""
        return suspects(self.attacks, self.settings.zoo.source)

    @_lent(*ZOO)
    def zoo(self) -> Zoo:
        """What all models of this zoo share."""
        width = self.settings.zoo.width
        require(is_number(width) and width > 0, "zoo.width", "a number above 0", width)
        return Zoo(
            data=digest(self.data),
            classes=self.data.task.outputs,
            source=self.settings.zoo.source,
            width=float(width),
            augment=Augment(**self.settings.data.constants.augment),
            precision=self.settings.precision,
            seed=self._number("zoo.seed", 0),
            scratch=config.build(self.settings.zoo.scratch),
            given=self._given(),
        )

    def _given(self) -> Given | None:
        path = OmegaConf.select(self.settings, "zoo.weights")
        if path is None:
            return None
        require(isinstance(path, str), "zoo.weights", "a safetensors file, or null", path)
        return Given.of(path)

    @_lent(*ZOO)
    def models(self) -> dict[str, ModelSpec]:
        """What to make for each suspect, by its name."""
        for family, attack in self.attacks.items():
            if getattr(attack, "classifiers_only", False):
                self._require_labels(f"attack={family}", "attack=[source,finetune,prune,noise,distill]")
            if getattr(attack, "needs_transfer", False):
                self._require_transfer(family)
        return {suspect.name: self.zoo.spec(suspect, self.attacks) for suspect in self.suspects}

    @cached_property
    def method(self) -> Fingerprinter:
        """The selected method."""
        return cast(Fingerprinter, config.named("method", self.settings.method))

    @cached_property
    def fingerprint_spec(self) -> FingerprintSpec:
        """What the selected method is to be given."""
        if self.method.access == "label" or "gan" in self.method.needs:
            self._require_labels(f"method={self.settings.method.name}", "a method with access to outputs")
        positives, negatives = self.surrogates if "surrogates" in self.method.needs else ((), ())
        return FingerprintSpec(
            name=self.settings.method.name,
            method=self.method,
            data=self.zoo.data,
            classes=self.data.task.outputs,
            source=self.zoo.original(),
            positives=positives,
            negatives=negatives,
            gan=self._gan() if "gan" in self.method.needs else None,
            budget=self._number("queries", 1),
            seed=seed_for(self._number("seed", 0), "fingerprint"),
        )

    @property
    def setting(self) -> str:
        """A digest of what is judged, whatever the seed: the method, what it is given, and the evasion."""
        evasion = self.evasion_spec
        keys = [replace(self.fingerprint_spec, seed=0).key, evasion.key if evasion else ""]
        return hashlib.sha256("".join(keys).encode()).hexdigest()

    @_lent(*ZOO, "surrogates")
    def surrogates(self) -> Pair:
        """The models that methods may learn from: positive ones, the source first; negative ones."""
        chosen: Surrogates = config.build(self.settings.surrogates)
        pair = checked(chosen.specs(self.zoo), self.zoo.original())
        refuse_overlap([*pair.positives, *pair.negatives], list(self.models.values()), self.zoo.original())
        return pair

    def _require_labels(self, choice: str, alternative: str) -> None:
        require(self.data.task.labelled, choice, f"a data set with classes, or {alternative}", self.data.name)

    def _require_transfer(self, family: str) -> None:
        others = [name for name, attack in self.attacks.items() if not getattr(attack, "needs_transfer", False)]
        instead = f"attack=[{','.join(others)}]" if others else "another attack"
        expected = f"a data set with transfer images, such as from data.transfer_root=DIR, or {instead}"
        require(self.data.transfer is not None, f"attack={family}", expected, f"{self.data.name} without any")

    def _gan(self) -> GanSpec:
        seed = seed_for(self.settings.zoo.seed, "gan")
        name, design = str(self.settings.gan.name), config.named("gan", self.settings.gan)
        return GanSpec(name, self.zoo.data, self.data.task.outputs, design, seed)

    def fid_spec(self) -> FidSpec | None:
        """Return how good the GAN of the selected method is, as it is measured; None where there is none."""
        spec = self.fingerprint_spec
        return FidSpec(spec.gan, spec.source, seed_for(self.settings.zoo.seed, "fid")) if spec.gan else None

    @cached_property
    def evasion_spec(self) -> EvasionSpec | None:
        """What is put around every suspect; None where it is nothing."""
        evasion, name = cast(Evasion, config.named("evasion", self.settings.evasion)), self.settings.evasion.name
        if type(evasion) is Evasion:
            return None
        expected = "a class that inherits from fingerbench.evaluate.evasions.Evasion"
        require(isinstance(evasion, Evasion), f"evasion={name}", expected, type(evasion).__name__)
        changing = evasion.changes_queries or evasion.changes_answers
        require(changing, f"evasion={name}", "a method `queries` or `answers`", type(evasion).__name__)
        if evasion.changes_queries:
            expected = "a data set of 3-channel images, or evasion=none"
            got = f"{self.data.name}, {' x '.join(map(str, self.data.shape))}"
            require(self.data.shape[0] == 3, f"evasion={name}", expected, got)
        if evasion.changes_answers:
            self._require_labels(f"evasion={name}", "evasion=none")
        try_out(evasion, name, self.data.shape, self.data.task.outputs)
        seed = seed_for(self._number("zoo.seed", 0), "evasion", name)
        return EvasionSpec(name, self.zoo.data, evasion, seed)

    def responses(self) -> dict[str, ResponseSpec]:
        """What each selected suspect is asked by the selected method, by its name."""
        fingerprint, access, evasion = self.fingerprint_spec, self.method.access, self.evasion_spec
        return {name: ResponseSpec(fingerprint, spec, access, evasion) for name, spec in self.models.items()}

    def accuracies(self) -> dict[str, AccuracySpec]:
        """How good each selected suspect is under the evasion, by its name.

        It is empty where that is what the model's own facts say: without an evasion of queries.
        """
        evasion = self.evasion_spec
        if evasion is None or not evasion.evasion.changes_queries:
            return {}
        return {name: AccuracySpec(spec, evasion) for name, spec in self.models.items()}

    def plan(self) -> list[Spec]:
        """Return everything a full evaluation is made of, in the order in which idle workers should take it.

        What the fingerprint waits for comes first, then the networks that take longest, then the rest.
        """
        fingerprint = self.fingerprint_spec
        config.require_resolved(self.settings, "label")
        gan = [fingerprint.gan] if fingerprint.gan else []
        surrogates = [*fingerprint.positives, *fingerprint.negatives]
        fid = self.fid_spec()
        evasion = [self.evasion_spec] if self.evasion_spec else []
        measured = [*([fid] if fid else []), *evasion, *self.responses().values(), *self.accuracies().values()]
        return [fingerprint.source, *gan, *surrogates, fingerprint, *self._slowest_first(), *measured]

    def trained(self) -> list[Spec]:
        """Return everything that is trained, whatever the method: each once, in the order of `plan`."""
        gan = [self._gan()] if self.data.task.labelled else []
        trained = [self.zoo.original(), *gan, *itertools.chain(*self.surrogates), *self._slowest_first()]
        return list({spec.key: spec for spec in trained}.values())

    def _slowest_first(self) -> list[ModelSpec]:
        return sorted(self.models.values(), key=lambda spec: not spec.attack.students)

    @cached_property
    def workshop(self) -> Workshop:
        """What the makers of artefacts have at hand in this process."""
        return Workshop(self.store, self.data, pick_device(self.settings.device), self.settings.compiled)

    def build(self, wanted: Iterable[Spec]) -> None:
        """Make whatever of `wanted`, or of what it needs, is not in the store.

        Raises:
            UserError: a setting is none, or something in `wanted` is of another data set than this benchmark's.
        """
        # Refuse what cannot be before any worker starts.
        pick_bfloat16(self.settings.precision, pick_device(self.settings.device), self.settings.zoo.source)
        pick_compiled(self.settings.compiled, pick_device(self.settings.device), self.settings.zoo.source)
        self._number("threads", 1)
        for name in ("deterministic", "replay"):
            require(isinstance(self.settings[name], bool), name, "true or false", self.settings[name])
        wanted = self._from_shard(list(wanted))
        here, expected = self.zoo.data, f"something of data={self.settings.data.name} as it is here"
        for spec in with_needs(wanted).values():
            of = getattr(spec, "data", here)
            require(of == here, spec.label, expected, of)
        self._fit_foreign(wanted)
        settings = cast(dict[str, Any], OmegaConf.to_container(self.settings, resolve=True))
        settings["store"] = str(self.store.root)  # which was relative to where this process was then
        if any(not self.store.has(spec) for spec in wanted):
            self.store.remember(self.settings.data.name, settings["data"], self.zoo.data)
        sizes = Sizes.of(self.data)
        Pool(self.store, self.data, settings, self.jobs, lambda spec: effort(spec, sizes)).run(wanted)

    def _from_shard(self, wanted: list[Spec]) -> list[Spec]:
        """Return `wanted`, beginning where this shard begins to look among what is missing.

        Shard 0 begins at the front, and shards 1, 2, 3, 4, ... a half, a quarter, three quarters, an eighth, ... of the
        way: each falls into a widest gap that those before it leave, so that nobody needs to know how many there are.
        """
        shard = self._number("shard", 0)
        missing = [spec for spec in wanted if not self.store.has(spec)]
        first = len(missing) * int(f"{shard:b}"[::-1], 2) >> shard.bit_length()
        lacking = {spec.key for spec in missing}
        found = [spec for spec in wanted if spec.key not in lacking]
        return [*missing[first:], *missing[:first], *found] if first else wanted

    def _fit_foreign(self, wanted: Sequence[Spec]) -> None:
        """Refuse networks that cannot take these images, and weights that do not fit theirs.

        Say what zoo.width does not do.
        """
        missing = (spec for spec in with_needs(wanted).values() if not self.store.has(spec))
        models = [spec for spec in missing if isinstance(spec, ModelSpec)]
        for name in sorted({spec.architecture for spec in models}):
            require_fitting(name, self.data.shape)
        names = sorted({spec.architecture for spec in models if foreign(spec.architecture)})
        for name in names:
            network(name, self.data.task.outputs, shape=self.data.shape)
        if names and self.zoo.width != 1:
            log.info("built as published, whatever zoo.width is: %s", ", ".join(names))
        for spec in models:
            if isinstance(spec.attack, Given):
                spec.attack.fitted(spec.network(self.data.shape), spec.architecture)

    @property
    def jobs(self) -> int:
        """The number of worker processes."""
        if self.settings.jobs is None:
            return pick_jobs(pick_device(self.settings.device))
        return self._number("jobs", 1)

    def _number(self, key: str, least: int) -> int:
        value = OmegaConf.select(self.settings, key)
        require(is_whole(value) and value >= least, key, f"a whole number from {least}", value)
        return int(value)

    def model(self, name: str) -> nn.Module:
        """Return a suspect by name, built if missing: frozen, in eval mode, [0, 1] images to outputs.

        Raises:
            UserError: there is no such suspect among the selected families.
        """
        if name not in self.models:
            raise unknown("suspect", name, self.models)
        self.build([self.models[name]])
        return self.models[name].load(self.workshop)

    def fingerprint(self, method: str | None = None) -> Fingerprint:
        """Return the fingerprint of a method (default: the selected one), made if missing."""
        bench = self.using(method)
        bench.build([bench.fingerprint_spec])
        return fingerprint_of(bench.store.load(bench.fingerprint_spec))

    def scores(self, method: str | None = None) -> pd.DataFrame:
        """Return the scores of a method (default: the selected one), one row a suspect, computed if missing.

        Columns: method, source, suspect, family, attack, variant, arch, pirated, mirror_of, score, score_8bit, raw,
        accuracy, queries, evasion, seed, profile. `score` is in [0, 1], 1 = the same as the source; `score_8bit` is
        the score where the suspect receives the queries rounded to 8 bits a value; `accuracy` (R2 of a regression) is
        what the suspect has left on the test split under the evasion.
        """
        from fingerbench.evaluate.run import scores

        bench = self.using(method)
        bench.build(bench.plan())
        return scores(bench)

    def using(self, method: str | None) -> Bench:
        """Return this benchmark with another method, as its file has it.

        What was said of the one before goes, its label too.
        """
        if method in (None, OmegaConf.select(self.settings, "method.name")):
            return self
        overrides = [*config.without(self.overrides, ["method", "label"]), f"method={method}"]
        return Bench(config.compose(overrides), overrides, lenders=[self])

    def under(self, evasion: str, node: DictConfig | None = None) -> Bench:
        """Return this benchmark under another evasion; data, models and fingerprint, with their keys, are shared.

        node: what `config.choice` has of that evasion, if it is at hand.

        Raises:
            UserError: there is no such evasion.
        """
        _ = self.models, self.fingerprint_spec, self.workshop  # made here, so that the copy has them
        other = copy.copy(self)
        other.settings = copy.deepcopy(self.settings)
        other.settings.evasion = node or config.choice("evasion", evasion, self.overrides)
        other.overrides = (*config.without(self.overrides, ["evasion"]), f"evasion={evasion}")
        other.__dict__.pop("evasion_spec", None)
        return other
