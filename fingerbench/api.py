"""The one interface that a fingerprinting method implements."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from fingerbench.records import Fingerprint, Setting

Access = Literal["label", "output"]


@runtime_checkable
class Fingerprinter(Protocol):
    """A fingerprinting method: a frozen dataclass whose fields are its hyperparameters.

    It never receives a suspect: it returns queries, the evaluator asks them of each suspect and hands the answers
    back, no richer than the access that the method declares.
    """

    access: ClassVar[Access]
    """What a suspect must answer: "label" (a classifier's top-1) or "output" (softmax, or predicted values)."""

    needs: ClassVar[frozenset[str]]
    """What the setting must hold beside source and images: "surrogates", "gan", both or nothing."""

    def fingerprint(self, setting: Setting) -> Fingerprint:
        """Make at most `setting.budget` queries of the source, and whatever `similarity` needs."""
        ...

    def similarity(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return how much a suspect resembles the source, in [0, 1], 1 = the same.

        responses: int64 (n,) labels, or float32 (n, outputs) probabilities or predicted values, by `access`.
        """
        ...
