"""Fingerprints and responses as artefacts of the store. Nothing but `ResponseSpec` ever asks a suspect anything."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fingerbench.api import Access, Fingerprinter
from fingerbench.gans.spec import GanSpec
from fingerbench.ops import eight_bit, predict
from fingerbench.records import Fingerprint, Setting
from fingerbench.seeds import seeded
from fingerbench.store import Artefact, Spec
from fingerbench.workshop import Workshop
from fingerbench.zoo.model import ModelSpec


@dataclass(frozen=True)
class FingerprintSpec(Spec):
    """Everything that a fingerprint follows from."""

    kind: ClassVar[str] = "fingerprint"
    version: ClassVar[int] = 1

    name: str = field(compare=False)  # of the method
    method: Fingerprinter
    data: str  # digest of the data set
    classes: int
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

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Let the method make its queries, in a world where there is no suspect."""
        began = time.perf_counter()
        with seeded(self.seed) as generator:
            fingerprint = self.method.fingerprint(self._setting(workshop, generator))
        if len(fingerprint) > self.budget:
            raise ValueError(f"{self.name}: expected at most {self.budget} queries, got {len(fingerprint)}")
        return dict(fingerprint.tensors()), {
            "name": self.name,
            "seed": self.seed,
            "queries": len(fingerprint),
            "surrogates": len({spec.key for spec in (*self.positives, *self.negatives)} - {self.source.key}),
            "yields": dict(fingerprint.yields),
            "note": fingerprint.note,
            "seconds": time.perf_counter() - began,
        }

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
            classes=self.classes,
            budget=self.budget,
            device=workshop.device,
            generator=generator,
        )


def fingerprint_of(artefact: Artefact) -> Fingerprint:
    """Return the fingerprint that a stored artefact holds."""
    state = dict(artefact.tensors)
    queries = state.pop("queries")
    return Fingerprint(queries, state, artefact.facts["yields"], artefact.facts["note"])


@dataclass(frozen=True)
class ResponseSpec(Spec):
    """What one suspect answers to the queries of one fingerprint and to their 8-bit copies, no richer than `access`."""

    kind: ClassVar[str] = "response"
    version: ClassVar[int] = 2

    fingerprint: FingerprintSpec
    suspect: ModelSpec
    access: Access

    @property
    def label(self) -> str:
        """The suspect's name."""
        return f"{self.suspect.name} answers"

    @property
    def effort(self) -> float:
        """One small batch, no training."""
        return 0.01

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Ask."""
        queries = workshop.load(self.fingerprint).tensors["queries"]
        suspect = self.suspect.load(workshop)
        answers = {
            name: self._answer(predict(suspect, x))
            for name, x in (("answers", queries), ("answers_8bit", eight_bit(queries)))
        }
        return answers, {"queries": len(queries)}

    def _answer(self, logits: Tensor) -> Tensor:
        return logits.argmax(1) if self.access == "label" else logits.softmax(1)


def summary_of(facts: dict[str, Any]) -> str:
    """Return how a fingerprint came out, in one line."""
    yields = json.dumps(facts["yields"]).strip("{}").replace('"', "")
    note = f"; {facts['note']}" if facts["note"] else ""
    return f"{facts['name']}: {facts['queries']} queries in {facts['seconds']:.1f} s ({yields}){note}"
