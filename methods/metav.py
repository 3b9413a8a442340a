"""MetaV: learnt queries, and a small network that reads the answers to all of them and says stolen or not.

Paper: Pan, Yan, Zhang, Yang, "MetaV: A Meta-Verifier Approach to Task-Agnostic Model Fingerprinting", KDD 2022.
Claim: queries and verifier, trained together on the owner's imitations of thieves and on independent models, tell
stolen models of any task apart, since nothing but numeric answers is used.
Access: full answers: probabilities, or predicted values. Needs: surrogates of both kinds.

No official code exists, and the paper's full text was not at hand, so these are unknown and chosen here:
- answers: softmax probabilities. The unofficial code and MNTD (Xu et al., S&P 2021), the closest ancestor, read logits,
  which no API gives; `features=logits` takes the nearest, log-probabilities minus their mean over the classes, which
  are logits minus theirs;
- verifier: one hidden layer of 128 (unofficial code) with a ReLU between (MNTD; the unofficial code has none);
- start: mid-grey, with noise of 1e-3 (MNTD) on w, 5e-4 on pixels, which fits the remark in NaturalFinger's paper that
  the queries of MetaV look like empty images with slight noise;
- images: (tanh(w) + 1) / 2, so that any w is one (the paper, as remembered; the unofficial code takes tanh of
  pixels);
- loss: the log-likelihood of the verifier, mean over each kind of surrogate (unofficial code), and as score its
  probability of stolen, in place of a matching rate (ours);
- the unofficial code adds a third loss term for the source; here the source is the first of the positives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fingerbench import ops
from fingerbench.api import Access
from fingerbench.cost import MethodOutline, Work, passes
from fingerbench.errors import UserError, require
from fingerbench.records import Fingerprint, Setting
from fingerbench.replay import Replay, adam

STOLEN, INDEPENDENT = 1, 0  # outputs of the verifier
START_STD = 1e-3  # MNTD
EDGE = 0.01  # images to start from are kept this far inside [0, 1], where tanh still has a slope; not published
FLOOR = 1e-8  # of a probability whose logarithm is taken; default: not published


@dataclass(frozen=True)
class MetaV:
    """Hyperparameters of MetaV.

    features: what the verifier reads; "answers" as the API gives them, or "logits" taken back from probabilities;
    activation: between the layers of the verifier, "relu" or "none"; hidden: its width;
    init: queries start "grey" with slight noise or as random "train_images" of the owner;
    lr: Adam's, for queries and verifier; iterations: steps, each with every surrogate.
    """

    access: ClassVar[Access] = "output"
    needs: ClassVar[frozenset[str]] = frozenset({"surrogates"})

    features: Literal["answers", "logits"] = "answers"
    activation: Literal["relu", "none"] = "relu"
    hidden: int = 128
    init: Literal["grey", "train_images"] = "grey"
    lr: float = 1e-3
    iterations: int = 1000

    def fingerprint(self, setting: Setting) -> Fingerprint:
        """Train `setting.budget` queries and the verifier.

        State: hidden_weight, hidden_bias, out_weight, out_bias of the verifier; answers, float (n, outputs), of the
        source; labels, int64 (n,), its classes if the task has some. Raises UserError for a wrong option, or without
        surrogates.
        """
        self._check(setting)
        w = self._start(setting).to(setting.device).requires_grad_(True)
        verifier = self._verifier(setting)
        sides = [(m, STOLEN, 1 / len(setting.positives)) for m in setting.positives]
        sides += [(m, INDEPENDENT, 1 / len(setting.negatives)) for m in setting.negatives]
        optimizer = adam([w, *verifier.values()], self.lr)

        def step() -> None:
            optimizer.zero_grad()
            for model, side, weight in sides:  # one at a time: the gradient is a sum, the memory that of one model
                answers = setting.task.answer(model(images(w)))
                (weight * self.loss(answers, side, verifier)).backward()
            optimizer.step()

        again = Replay(step, setting.device, generators=[setting.generator])
        for _ in range(self.iterations):
            again()
        return self._record(setting, images(w.detach()), verifier)

    def work(self, outline: MethodOutline) -> Work:
        """Return all queries through all surrogates, in each iteration."""
        return passes("attack", outline.surrogates, self.iterations * outline.budget, outline.budget)

    def loss(self, answers: Tensor, side: int, verifier: Mapping[str, Tensor]) -> Tensor:
        """Return -log v_side of a model with these answers (n, outputs): one term of the loss."""
        return -self._outputs(answers, verifier).log_softmax(0)[side]

    def similarity(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return v_1, the probability that the verifier gives to stolen. The source itself is not bound to get 1."""
        # In float32 the softmax of outputs 17 apart is 1, and suspects would tie.
        return self._outputs(responses, fingerprint.state).double().softmax(0)[STOLEN].item()

    def raw(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return how well responses (n, outputs) agree with the source's, without the verifier.

        It is the share of equal classes; of a regression R2 with the source's answers for truth, not below 0, which
        says nothing of a single query, whose answers do not vary.
        """
        if "labels" in fingerprint.state:
            return ops.matching_rate(fingerprint.state["labels"], responses.argmax(1))
        return max(0.0, ops.r2(fingerprint.state["answers"], responses))

    def _outputs(self, answers: Tensor, verifier: Mapping[str, Tensor]) -> Tensor:
        """Return the two logits of the verifier, (2,), for the answers (n, outputs) of one model."""
        phi = answers if self.features == "answers" else logits(answers)
        h = F.linear(phi.flatten(), verifier["hidden_weight"], verifier["hidden_bias"])
        h = h.relu() if self.activation == "relu" else h
        return F.linear(h, verifier["out_weight"], verifier["out_bias"])

    def _start(self, setting: Setting) -> Tensor:
        """Return w (n, c, h, w), of which the queries are made by `images`."""
        shape = (setting.budget, *setting.train.x.shape[1:])
        if self.init == "grey":
            return START_STD * torch.randn(shape, generator=setting.generator)
        order = torch.randperm(len(setting.train), generator=setting.generator)
        chosen = order[torch.arange(setting.budget) % len(order)]
        x = setting.train.pixels(chosen).clamp(EDGE, 1 - EDGE)
        return torch.atanh(2 * x - 1)

    def _verifier(self, setting: Setting) -> dict[str, Tensor]:
        """Return fresh weights, uniform in +-1 / sqrt(inputs) as PyTorch starts its linear layers."""

        def drawn(inputs: int, *shape: int) -> Tensor:
            start = (2 * torch.rand(shape, generator=setting.generator) - 1) / inputs**0.5
            return start.to(setting.device).requires_grad_(True)

        inputs = setting.budget * setting.task.outputs
        return {
            "hidden_weight": drawn(inputs, self.hidden, inputs),
            "hidden_bias": drawn(inputs, self.hidden),
            "out_weight": drawn(self.hidden, 2, self.hidden),
            "out_bias": drawn(self.hidden, 2),
        }

    def _record(self, setting: Setting, queries: Tensor, verifier: Mapping[str, Tensor]) -> Fingerprint:
        outputs = ops.predict(setting.source, queries)
        state = {name: weights.detach() for name, weights in verifier.items()}
        state["answers"] = setting.task.answer(outputs)
        if setting.task.labelled:
            state["labels"] = setting.task.label(outputs)
        yields = {"tried": len(queries), "accepted": len(queries)}  # nothing is screened
        return Fingerprint(queries.cpu(), {name: tensor.cpu() for name, tensor in state.items()}, yields)

    def _check(self, setting: Setting) -> None:
        for name in ("hidden", "iterations"):
            require(getattr(self, name) > 0, f"method.{name}", "1 or more", getattr(self, name))
        if self.features == "logits" and not setting.task.labelled:
            raise UserError("method.features=logits: expected a task with probabilities, got a regression; use answers")
        if not setting.positives or not setting.negatives:
            raise UserError("metav: expected positive and negative surrogates in the setting; add some to surrogates")


def images(w: Tensor) -> Tensor:
    """Return the queries (tanh(w) + 1) / 2, in [0, 1] for any real w (n, c, h, w)."""
    return (w.tanh() + 1) / 2


def logits(probabilities: Tensor) -> Tensor:
    """Return the logits (n, classes) that softmax made these probabilities of, shifted to mean 0 in each row."""
    log = probabilities.clamp(min=FLOOR).log()
    return log - log.mean(1, keepdim=True)
