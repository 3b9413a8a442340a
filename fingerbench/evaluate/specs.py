"""Fingerprints, evasions and what suspects answer, as artefacts of the store.

Nothing but `ResponseSpec`, `AccuracySpec` and `AgreementSpec` ever asks a suspect anything, except the source, which
its owner has.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fingerbench.api import Access, Fingerprinter
from fingerbench.cost import MethodOutline, Sizes, Work, method_work, passes
from fingerbench.errors import LONGEST, ContractError, NoQueriesError, UserError
from fingerbench.evaluate.evasions import Evasion
from fingerbench.evaluate.metrics import DIGITS
from fingerbench.gans.spec import GanSpec
from fingerbench.ops import eight_bit, predict, without_trials
from fingerbench.records import Fingerprint, Setting, require_images
from fingerbench.seeds import seed_for, seeded
from fingerbench.store import Artefact, Spec
from fingerbench.workshop import Workshop, pick_bfloat16
from fingerbench.zoo.model import ModelSpec

KEPT = 128  # sets of queries that a worker has at hand: an experiment asks one suspect all of them, then the next


@dataclass(frozen=True)
class FingerprintSpec(Spec):
    """Everything that a fingerprint follows from."""

    kind: ClassVar[str] = "fingerprint"
    version: ClassVar[int] = 1

    name: str = field(compare=False)  # of the method
    method: Fingerprinter
    data: str  # digest of the data set
    classes: int  # outputs of the networks, as in ModelSpec
    source: ModelSpec
    positives: tuple[ModelSpec, ...]
    negatives: tuple[ModelSpec, ...]
    gan: GanSpec | None
    budget: int
    seed: int

    @property
    def label(self) -> str:
        """The method's name and its seed."""
        return f"{self.name} fingerprint"

    def work(self, sizes: Sizes) -> Work:
        """Return what the method says of its work; of one that stops when it has enough, the most it may take."""
        return method_work(self.method, self.outline(sizes))

    def outline(self, sizes: Sizes) -> MethodOutline:
        """Return the setting in numbers."""
        positives, negatives = (
            tuple(spec.outline(sizes.shape) for spec in specs) for specs in (self.positives, self.negatives)
        )
        gan = self.gan.outline(sizes.shape) if self.gan else None
        return MethodOutline(self.source.outline(sizes.shape), positives, negatives, gan, sizes, self.budget)

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Let the method make its queries, in a world where there is no suspect; that it found none is a result too."""
        began = time.perf_counter()
        with seeded(self.seed) as generator:
            try:
                fingerprint = self._made(workshop, generator)
            except NoQueriesError as error:
                fingerprint = Fingerprint(torch.empty(0, *workshop.data.shape), {}, note=str(error))
            except ContractError as error:
                raise _misbehaved(self.name, self.method, str(error)) from error
        if workshop.device.type == "cuda":
            gc.collect()  # `Graphed` networks refer to themselves, and hold memory that other workers want
        return dict(fingerprint.tensors()), {
            "name": self.name,
            "seed": self.seed,
            "queries": len(fingerprint),
            "surrogates": len({spec.key for spec in (*self.positives, *self.negatives)} - {self.source.key}),
            "yields": dict(fingerprint.yields),
            "note": fingerprint.note,
            "seconds": time.perf_counter() - began,
        }

    def _made(self, workshop: Workshop, generator: torch.Generator) -> Fingerprint:
        setting = self._setting(workshop, generator)
        given = {name: tensor.clone() for name, tensor in setting.source.state_dict().items()}
        fingerprint: Any = self.method.fingerprint(setting)
        if any(not torch.equal(tensor, given[name]) for name, tensor in setting.source.state_dict().items()):
            raise ContractError("source: expected its weights as they were given, got others; change a copy")
        if not isinstance(fingerprint, Fingerprint):
            raise ContractError(f"fingerprint: expected a Fingerprint; got {_told(fingerprint)}")
        for name, value in fingerprint.state.items():
            if not isinstance(value, Tensor):
                raise ContractError(f"state[{name!r}]: expected a tensor; got {_told(value)}")
        require_images(fingerprint.queries, workshop.data.shape)
        if len(fingerprint) > self.budget:
            raise ContractError(f"queries: expected at most {self.budget}, got {len(fingerprint)}")
        return fingerprint

    def _setting(self, workshop: Workshop, generator: torch.Generator) -> Setting:
        def revived(specs: Sequence[ModelSpec]) -> tuple[nn.Module, ...]:
            return tuple(spec.load(workshop) for spec in specs)

        return Setting(
            source=self.source.load(workshop),
            train=workshop.data.a,
            heldout=workshop.data.test,
            positives=revived(self.positives),
            negatives=revived(self.negatives),
            gan=self.gan.load(workshop) if self.gan else None,
            task=workshop.data.task,
            budget=self.budget,
            device=workshop.device,
            generator=generator,
            autocast=workshop.device.type == "cuda"
            and pick_bfloat16(self.source.precision, workshop.device, self.source.architecture),
        )


def judge_of(name: str, method: Fingerprinter) -> Callable[[Fingerprint, Tensor], float]:
    """Return the `similarity` of the method `name`.

    It raises a UserError where that is no number in [0, 1], but for what lies beyond the digits that count.
    """

    def judge(fingerprint: Fingerprint, answers: Tensor) -> float:
        score: Any = method.similarity(fingerprint, answers)
        sound = isinstance(score, Real) and not isinstance(score, bool) and 0 <= round(float(score), DIGITS) <= 1
        if not sound:
            raise _misbehaved(name, method, f"similarity: expected a number in [0, 1]; got {_told(score)}")
        return min(max(float(score), 0.0), 1.0)

    return judge


def _misbehaved(name: str, method: Fingerprinter, how: str) -> UserError:
    module = type(method).__module__
    file = getattr(sys.modules.get(module), "__file__", None) or module  # one typed in has none
    file = os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file
    return UserError(f"method {name}: {how}; python -m fingerbench check {file} says more")


def _told(value: object) -> str:
    return " ".join(repr(value).split())[:LONGEST]


def fingerprint_of(artefact: Artefact) -> Fingerprint:
    """Return the fingerprint that a stored artefact holds."""
    state = dict(artefact.tensors)
    queries = state.pop("queries")
    return Fingerprint(queries, state, artefact.facts["yields"], artefact.facts["note"])


@dataclass(frozen=True)
class EvasionSpec(Spec):
    """An evasion and what it needs, such as a trained network: the same for all suspects."""

    kind: ClassVar[str] = "evasion"
    version: ClassVar[int] = 2

    name: str = field(compare=False)
    data: str  # digest of the data set
    evasion: Evasion
    seed: int

    @property
    def label(self) -> str:
        """The evasion's name."""
        return f"{self.name} evasion"

    def work(self, sizes: Sizes) -> Work:
        """Return what the evasion says of its preparation."""
        return self.evasion.work(sizes)

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Prepare the evasion on the images that a thief has."""
        began = time.perf_counter()
        with seeded(self.seed) as generator:
            weights, facts = self.evasion.prepare(workshop.data.finetune.to(workshop.device).pixels(), generator)
        return weights, {"name": self.name, "seed": self.seed, **facts, "seconds": time.perf_counter() - began}

    def draw(self, x: Tensor, workshop: Workshop, whose: str = "") -> Tensor:
        """Return what models see of queries x (n, c, h, w): (draws, n, c, h', w').

        The randomness follows from the seed and from `whose` queries they are.
        """
        weights = workshop.load(self).tensors
        with seeded(seed_for(self.seed, whose)) as generator:
            return torch.stack([self.evasion.queries(x.clone(), weights, generator) for _ in range(self.evasion.draws)])

    def answer(self, probabilities: Tensor, whose: str) -> Tensor:
        """Return what goes out instead of probabilities (n, classes); what is random follows from `whose` they are."""
        with seeded(seed_for(self.seed, whose)):
            return self.evasion.answers(probabilities)


@dataclass(frozen=True)
class ResponseSpec(Spec):
    """What one suspect answers to the queries of one fingerprint and to their 8-bit copies, no richer than `access`.

    Tensors: answers and answers_8bit, (draws, n) labels or (draws, n, outputs), draws being 1 without an evasion. An
    evasion works on the 8-bit copies as it does on the queries, with the same draws.
    """

    kind: ClassVar[str] = "response"
    version: ClassVar[int] = 3

    fingerprint: FingerprintSpec
    suspect: ModelSpec
    access: Access
    evasion: EvasionSpec | None

    @property
    def label(self) -> str:
        """The suspect's name."""
        return f"{self.suspect.name} answers"

    @property
    def alike(self) -> str:
        """The suspect, which is loaded once then."""
        return self.suspect.key

    def work(self, sizes: Sizes) -> Work:
        """Return the queries and their 8-bit copies, once a draw."""
        return passes("answer", (self.suspect.outline(sizes.shape),), 2 * self._draws * self.fingerprint.budget)

    @property
    def _draws(self) -> int:
        return self.evasion.evasion.draws if self.evasion else 1

    @without_trials()
    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Ask everything at once. Of a fingerprint without queries the answers are empty, (1, 0)."""
        if not workshop.store.facts(self.fingerprint)["queries"]:
            nothing = torch.empty(1, 0)
            return {"answers": nothing, "answers_8bit": nothing}, {"queries": 0}
        whose = self.suspect.key if self._draws > 1 else ""  # where nothing is random, all suspects get the same
        asked = self._asked(workshop, whose) if whose else self._asked_of_all(workshop)
        suspect = workshop.once("suspect", self.suspect.key, lambda: self.suspect.load(workshop))
        task, outputs = workshop.data.task, predict(suspect, asked.flatten(0, 2))
        full = self.access == "output"
        answers = task.answer(outputs) if full else task.label(outputs)
        if full and self.evasion:
            answers = self.evasion.answer(answers, self.suspect.key)
        answers = answers.unflatten(0, asked.shape[:3])
        return {"answers": answers[0], "answers_8bit": answers[-1].clone()}, {"queries": asked.shape[2]}

    def _asked_of_all(self, workshop: Workshop) -> Tensor:
        key = f"{self.fingerprint.key} {self.evasion.key if self.evasion else ''}"
        return workshop.once("queries", key, lambda: self._asked(workshop, ""), KEPT)

    def _asked(self, workshop: Workshop, whose: str) -> Tensor:
        """Return what the suspect sees of the queries and of their 8-bit copies, (2, draws, n, c, h, w).

        Where that is the same, as behind JPEG, it is there once, so that nothing is asked twice.
        """
        queries = workshop.load(self.fingerprint).tensors["queries"]
        plain, rounded = (
            self.evasion.draw(x, workshop, whose) if self.evasion else x[None] for x in (queries, eight_bit(queries))
        )
        return plain[None] if torch.equal(plain, rounded) else torch.stack([plain, rounded])


@dataclass(frozen=True)
class AccuracySpec(Spec):
    """How good one suspect still is on the test split under an evasion of queries, mean over draws.

    The draws are the same for all suspects. An evasion of answers changes no label, and so no accuracy.
    """

    kind: ClassVar[str] = "accuracy"
    version: ClassVar[int] = 1

    suspect: ModelSpec
    evasion: EvasionSpec

    @property
    def label(self) -> str:
        """The suspect's name and the evasion's."""
        return f"{self.suspect.name} under {self.evasion.name}"

    def work(self, sizes: Sizes) -> Work:
        """Return the test split, once a draw."""
        return passes("answer", (self.suspect.outline(sizes.shape),), self.evasion.evasion.draws * sizes.test)

    @without_trials()
    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Measure; the quality stands in the facts, as that of the model itself does in its own."""
        test, task = workshop.data.test.to(workshop.device), workshop.data.task
        seen = workshop.once("test split", self.evasion.key, lambda: self.evasion.draw(test.pixels(), workshop))
        suspect = self.suspect.load(workshop)
        qualities = [task.quality(predict(suspect, x), test.y) for x in seen]
        return {}, {"name": self.suspect.name, task.quality_name: sum(qualities) / len(qualities)}


@dataclass(frozen=True)
class AgreementSpec(Spec):
    """How often one suspect answers what the source does, on the test split."""

    kind: ClassVar[str] = "agreement"
    version: ClassVar[int] = 1

    suspect: ModelSpec
    source: ModelSpec

    @property
    def label(self) -> str:
        """The suspect's name."""
        return f"{self.suspect.name} agreement"

    def work(self, sizes: Sizes) -> Work:
        """Return the test split."""
        return passes("answer", (self.suspect.outline(sizes.shape),), sizes.test)

    @without_trials()
    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Measure; the share stands in the facts, under the name that it has in those of a model."""
        task, x = workshop.data.task, workshop.data.test.to(workshop.device).pixels()
        reference = workshop.once("source on test", self.source.key, lambda: predict(self.source.load(workshop), x))
        agreement = task.agreement(predict(self.suspect.load(workshop), x), reference)
        return {}, {"name": self.suspect.name, "agreement": agreement}


def summary_of(facts: dict[str, Any]) -> str:
    """Return how a fingerprint came out, in one line."""
    counts = json.dumps(facts["yields"]).strip("{}").replace('"', "")
    yields = f" ({counts})" if counts else ""
    note = f"; {facts['note']}" if facts["note"] else ""
    return f"{facts['name']}: {facts['queries']} queries in {facts['seconds']:.1f} s{yields}{note}"
