"""One model of the zoo: its complete description, and how it is made."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fingerbench.checkpoint import Checkpoint
from fingerbench.cost import ModelOutline, Network, Sizes, Work, attack_work, passes
from fingerbench.data.augment import Augment
from fingerbench.errors import DivergedError, require
from fingerbench.nets import blank, revision
from fingerbench.ops import predict, without_trials
from fingerbench.records import Half, Images
from fingerbench.seeds import seeded
from fingerbench.store import Spec
from fingerbench.task import Task
from fingerbench.workshop import CAUTION, Workshop, persevere, pick_bfloat16, pick_compiled, revive
from fingerbench.zoo.given import Given, misfit
from fingerbench.zoo.train import Scene, Workbench


class Attack(Protocol):
    """How a model is made of another: a frozen dataclass whose fields are its hyperparameters.

    variants: the settings that FingerBench has a suspect for (declared with `field(compare=False)`: the list is no
    part of what one model is). students: True where a variant names the architecture of a new network, False where
    the victim's own is kept. An attack on classifiers alone says so with a class attribute `classifiers_only = True`,
    one that needs the transfer images of the data set with `needs_transfer = True`. One that keeps the victim's own may
    refuse variants with a method `check(variant)`, which raises a UserError before anything is built. One that does
    more than to train by its `recipe`, or on other images than `cost.attack_work` supposes, may say so with a method
    `work(variant, outline)`, for the time left.
    """

    @property
    def variants(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def students(self) -> bool: ...  # noqa: D102

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the model in eval mode. The victim of the scene may be changed in place and returned."""
        ...


@dataclass(frozen=True)
class ModelSpec(Spec):
    """Everything that decides the weights of one network, given the machine it is trained on."""

    kind: ClassVar[str] = "model"
    version: ClassVar[int] = 1

    name: str = field(compare=False)
    data: str  # digest of the data set
    classes: int  # outputs of the network; the field keeps its name, which is part of every key
    architecture: str
    width: float
    half: Half
    augment: Augment
    attack: Attack
    variant: str
    parent: ModelSpec | None
    precision: str
    seed: int

    def identity(self) -> dict[str, Any]:
        """Return the description as plain data, with the revision of the network where it has one."""
        return super().identity() | revision(self.architecture)

    @property
    def label(self) -> str:
        """The suspect's or surrogate's name."""
        return self.name

    @property
    def alike(self) -> str:
        """What is `warm`; nothing of surrogates, which are waited for."""
        return "" if self.name.startswith("surrogate/") else self.warm

    @property
    def warm(self) -> str:
        """The architecture: PyTorch has its kernels, cuDNN's choices and what was compiled at hand then."""
        return self.architecture

    def work(self, sizes: Sizes) -> Work:
        """Return the attack's work, and that of measuring the model and its victim on the test split."""
        own = self.outline(sizes.shape)
        victim = self.parent.outline(sizes.shape) if self.parent else None
        measured = passes("answer", (own, victim) if victim else (own,), sizes.test)
        return measured + attack_work(
            self.attack, self.variant, ModelOutline(own, victim, sizes, not self.augment.identity)
        )

    def outline(self, shape: tuple[int, int, int]) -> Network:
        """Return what the network costs, on images of `shape` (c, h, w)."""
        return Network(self.architecture, self.classes, self.width, shape)

    def network(self, shape: tuple[int, int, int]) -> nn.Module:
        """Return the network without its weights: [0, 1] images of `shape` (c, h, w) to outputs."""
        return self.outline(shape).build()

    def _blank(self, shape: tuple[int, int, int]) -> nn.Module:
        """Return the network for weights that are there: on the meta device, if it is ours."""
        with blank(self.architecture):
            return self.network(shape)

    def load(self, workshop: Workshop) -> nn.Module:
        """Return the stored model, frozen, in eval mode.

        Raises:
            UserError: the architecture changed since: it is a function of the user's, or of another library's version.
        """
        artefact = workshop.load(self)
        model = self._blank(workshop.data.shape)
        wrong = misfit(model, artefact.tensors)
        expected = f"stored weights that fit {self.architecture}; name what changed otherwise, or take another store="
        require(not wrong, self.name, expected, wrong)
        return revive(model, artefact.tensors).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train the model; the facts hold its quality and its agreement with its parent on the test split.

        A training that diverges is begun once more, in float32 and with every learning rate multiplied by CAUTION, and
        without a checkpoint; the facts say so in `retried`. Default: not published.

        Raises:
            DivergedError: that diverges as well.
            UserError: the attack makes something other than a network of the architecture.
        """
        began = time.perf_counter()
        victim = self.parent.load(workshop) if self.parent else None
        checkpoint = Checkpoint(workshop.store.checkpoint(self), workshop.store.parents(self))
        model, trained = self._trained(workshop, victim, checkpoint)
        model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return dict(model.state_dict()), {
            "name": self.name,
            "architecture": self.architecture,
            "parent": self.parent.key if self.parent else None,
            "seed": self.seed,
            "device": workshop.device.type,
            **trained,
            **_measure(model, victim, workshop.data.test.to(workshop.device), workshop.data.task),
            "seconds": checkpoint.seconds + time.perf_counter() - began,
        }

    def _trained(
        self, workshop: Workshop, victim: nn.Module | None, checkpoint: Checkpoint
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Return the model and how it was trained."""
        trains = not isinstance(self.attack, Given)
        autocast = trains and pick_bfloat16(self.precision, workshop.device, self.architecture)
        (model, losses), retried = persevere(
            self.name,
            lambda: self._attempt(workshop, victim, autocast, checkpoint),
            lambda: self._attempt(workshop, victim, False, Checkpoint(), CAUTION),
            "lower the lr of its recipe (conf/recipe, or conf/attack), or leave it out",
            how=" in float32",
        )
        return model, {"autocast": autocast and retried is None, "retried": retried, "losses": losses}

    def _attempt(
        self,
        workshop: Workshop,
        victim: nn.Module | None,
        autocast: bool,
        checkpoint: Checkpoint,
        caution: float = 1.0,
    ) -> tuple[nn.Module, list[float]]:
        """Return the model and its mean loss in each epoch."""
        compiled = pick_compiled(workshop.compiled, workshop.device, self.architecture)
        with seeded(self.seed) as generator:
            workbench = Workbench(
                workshop.device,
                autocast,
                self.augment,
                generator,
                workshop.data.task,
                caution,
                compiled=compiled,
                checkpoint=checkpoint,
            )
            model = self.attack.make(self.variant, self._scene(workshop, workbench, victim))
        self._require_fit(model, workshop.data.shape)
        values = (value for value in model.state_dict().values() if value.is_floating_point())
        if not all(bool(value.isfinite().all()) for value in values):
            raise DivergedError("weights that are not finite")
        return model, workbench.losses

    def _require_fit(self, model: object, shape: tuple[int, int, int]) -> None:
        """Raise a UserError unless `model`, which the attack made, is one of the architecture: none else is loaded."""
        what, expected = f"{self.name}: {type(self.attack).__name__}.make", f"a network of {self.architecture}"
        if not isinstance(model, nn.Module):
            require(False, what, expected, model)
        else:
            wrong = misfit(self._blank(shape), model.state_dict())
            require(not wrong, what, f"{expected}, with its weights' names and shapes", wrong)

    def _scene(self, workshop: Workshop, workbench: Workbench, victim: nn.Module | None) -> Scene:
        data, device = workshop.data, workshop.device
        copied = copy.deepcopy(victim).requires_grad_(True) if victim is not None else None
        return Scene(
            workbench,
            partial(self.network, data.shape),
            copied,
            data.half(self.half).to(device),
            data.finetune.to(device),
            data.transfer.to(device) if data.transfer is not None else None,
        )


@without_trials()
def _measure(model: nn.Module, victim: nn.Module | None, test: Images, task: Task) -> dict[str, float | None]:
    outputs = predict(model, test.pixels())
    agreement = task.agreement(outputs, predict(victim, test.pixels())) if victim is not None else None
    return {task.quality_name: task.quality(outputs, test.y), "agreement": agreement}
