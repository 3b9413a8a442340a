"""The detector of abnormal queries: what it learns from, what it flags, and what is kept of it."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fingerbench.data.augment import Augment
from fingerbench.errors import UserError
from fingerbench.evaluate.specs import FingerprintSpec
from fingerbench.evaluate.stealth import DetectionSpec, Detector, DetectorSpec, flagged, train, versions
from fingerbench.ops import eight_bit
from fingerbench.pool import Pool
from fingerbench.records import Dataset, Images
from fingerbench.store import Store
from fingerbench.task import Classification, Regression
from fingerbench.workshop import Workshop
from fingerbench.zoo.model import ModelSpec
from fingerbench.zoo.train import Recipe, Scratch
from methods.random import RandomImages

RECIPE = Recipe(epochs=1, batch=16, lr=0.1, momentum=0.9, weight_decay=0.0, schedule="cosine")
SOURCE = ModelSpec(
    "source", "digest", 2, "mlp", 1.0, "A", Augment(0, False), Scratch(RECIPE), "mlp", None, "float32", 0
)
DETECTOR = Detector(epochs=30, batch=32, lr=3e-3, noise_std=0.2, fgsm=0.1, width=0.25)
SPEC = DetectorSpec("digest", DETECTOR, SOURCE, 0)
FINGERPRINT = FingerprintSpec("random", RandomImages(), "digest", 2, SOURCE, (), (), None, 20, 0)


def smooth(n, seed):
    """Images without detail, of which the labels say whether they are bright."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 3, 3, generator=generator)
    x = F.interpolate(coarse, size=16, mode="bilinear", align_corners=True)
    return Images((x * 255).round().to(torch.uint8), (x.mean((1, 2, 3)) > 0.5).long())


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A store with a source of random weights, and beside it a data set of smooth images."""
    store = Store(tmp_path_factory.mktemp("stealth"))
    data = Dataset("smooth", Classification(2), smooth(8, 0), smooth(8, 1), smooth(96, 2), smooth(64, 3), None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        store.save(SOURCE, SOURCE.network(data.shape).state_dict(), {})
    return Workshop(store, data, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(workshop):
    """The facts of a trained detector, which is in the store afterwards."""
    tensors, facts = SPEC.make(workshop)
    workshop.store.save(SPEC, tensors, facts)
    return facts


def detect(workshop, queries, detector=SPEC, seed=0):
    """Return what the detector says to a fingerprint of these queries."""
    spec = DetectionSpec(detector, replace(FINGERPRINT, seed=seed))
    workshop.store.save(spec.fingerprint, {"queries": queries}, {})
    return spec, *spec.make(workshop)


def test_it_tells_unseen_abnormal_images_from_normal_ones(trained):
    assert trained["false_positive_rate"] <= 0.05
    assert trained["true_positive_rate_noise"] >= 0.95
    assert trained["true_positive_rate_fgsm"] >= 0.8
    assert trained["seconds"] > 0


def test_of_clean_queries_it_flags_as_many_as_of_the_test_split_and_of_noisy_ones_most(workshop, trained):
    clean = workshop.data.test.pixels()
    _, _, facts = detect(workshop, clean, seed=1)
    assert facts == {"name": "random", "detection_rate": trained["false_positive_rate"], "queries": len(clean)}
    noisy = (clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))).clamp(0, 1)
    _, tensors, facts = detect(workshop, torch.cat([clean, noisy]), seed=2)
    assert tensors["flagged"].dtype == torch.bool and tensors["flagged"].shape == (2 * len(clean),)
    assert tensors["flagged"][: len(clean)].double().mean() == trained["false_positive_rate"]
    assert tensors["flagged"][len(clean) :].double().mean() >= 0.95
    assert facts["detection_rate"] == tensors["flagged"].double().mean()


def test_of_no_query_no_share_is_flagged(workshop, trained):
    _, tensors, facts = detect(workshop, torch.empty(0, 3, 16, 16), seed=5)
    assert len(tensors["flagged"]) == facts["queries"] == 0 and facts["detection_rate"] is None


def test_queries_arrive_with_8_bits_a_value(workshop):
    spec = DetectorSpec("digest", Detector(architecture="mlp"), SOURCE, 0)
    model = spec.network(workshop.data.shape)  # made to flag whatever has a first value above 0.3 / 255
    first, second, last = (layer for layer in model if isinstance(layer, nn.Linear))
    for layer in (first, second, last):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        first.weight[0, 0], first.bias[0], second.weight[0, 0], last.weight[1, 0] = 255, -0.3, 1, 1
    workshop.store.save(spec, model.state_dict(), {})
    queries = torch.zeros(3, 3, 16, 16)
    queries[:, 0, 0, 0] = torch.tensor([0.0, 0.4, 0.6]) / 255
    assert flagged(model, queries).tolist() == [False, True, True]
    _, tensors, _ = detect(workshop, queries, spec, seed=3)
    assert tensors["flagged"].tolist() == [False, False, True]


def test_abnormal_images_are_noised_and_adversarial_ones_of_8_bits(workshop):
    source, images = (
        SOURCE.load(workshop),
        Images(torch.full((600, 3, 16, 16), 128, dtype=torch.uint8), smooth(600, 4).y),
    )
    detector = Detector(noise_std=0.05, fgsm=0.1)
    normal, noised, adversarial = versions(images, source, detector, torch.Generator().manual_seed(0))
    assert torch.equal(normal, images.pixels())
    assert (noised - normal).std().item() == pytest.approx(0.05, rel=0.01)
    assert abs((noised - normal).mean().item()) < 1e-3
    assert ((adversarial - normal).abs() - 0.1).abs().max() <= 0.5 / 255 + 1e-6
    loss = [F.cross_entropy(source(x), images.y, reduction="none") for x in (normal, adversarial)]
    assert (loss[1] > loss[0]).all()
    for x in (noised, adversarial):
        torch.testing.assert_close(x, eight_bit(x), rtol=0, atol=0)
    wild = replace(detector, noise_std=2.0, fgsm=2.0)
    assert all(x.min() >= 0 and x.max() <= 1 for x in versions(images, source, wild, torch.Generator()))


def test_normal_and_abnormal_images_count_alike():
    torch.manual_seed(0)
    same = torch.rand(1, 6)
    model = train(
        nn.Linear(6, 2), same.expand(30, 6), same.expand(90, 6), Detector(epochs=40, lr=0.05), torch.Generator()
    )
    assert model(same).softmax(1)[0, 1].item() == pytest.approx(0.5, abs=0.08)


def test_every_hyperparameter_is_part_of_the_key():
    others = {"epochs": 2, "batch": 3, "lr": 0.1, "noise_std": 0.4, "fgsm": 0.2, "architecture": "mlp", "width": 2.0}
    assert others.keys() == vars(Detector()).keys()
    specs = [replace(SPEC, detector=replace(DETECTOR, **{name: value})) for name, value in others.items()]
    specs += [SPEC, replace(SPEC, seed=1), replace(SPEC, data="other"), replace(SPEC, source=replace(SOURCE, seed=1))]
    assert len({spec.key for spec in specs}) == len(specs)
    assert len({DetectionSpec(spec, FINGERPRINT).key for spec in specs}) == len(specs)
    assert DetectionSpec(SPEC, FINGERPRINT).key != DetectionSpec(SPEC, replace(FINGERPRINT, budget=5)).key


def test_the_same_seed_makes_the_same_detector(workshop):
    spec = replace(SPEC, detector=replace(DETECTOR, epochs=1))
    a, b, c = (s.make(workshop)[0] for s in (spec, spec, replace(spec, seed=1)))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["classifier.weight"], c["classifier.weight"])


def test_a_regression_has_no_detector(workshop):
    rows = replace(workshop.data, name="rows", task=Regression())
    with pytest.raises(UserError, match="detector: expected a data set with classes; got 'rows'"):
        SPEC.make(replace(workshop, data=rows))


def test_the_pool_counts_detectors_and_detections_too(workshop, trained, caplog):
    spec, tensors, facts = detect(workshop, workshop.data.test.pixels(), seed=4)
    workshop.store.save(spec, tensors, facts)
    with caplog.at_level(logging.INFO):
        Pool(workshop.store, workshop.data, {}, 1).run([SOURCE, SPEC, spec])
    assert "found 1 of 1 models, 1 of 1 detections, 1 of 1 detectors; nothing to make" in caplog.text
