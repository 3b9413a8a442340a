"""Evasions: each against an oracle or a property, and runs of the tiny zoo under some."""

import io
from dataclasses import dataclass
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, finish, run, start
from PIL import Image
from torch.nn import functional as F

import fingerbench as fb
from fingerbench import config
from fingerbench.errors import UserError
from fingerbench.evaluate.evasions import Evasion, Transformed
from fingerbench.evaluate.run import _mean
from fingerbench.ops import eight_bit, matching_rate
from fingerbench.records import Fingerprint
from fingerbench.seeds import seeded
from fingerbench.transforms import GaussianBlur, GaussianNoise, HorizontalFlip, Mean, Median, ResizePad, UniformNoise

FAMILIES = "attack=[source,finetune,distill]"


def evasion(name, *words):
    return config.build(config.compose([f"evasion={name}", *words]).evasion)


def generator():
    return torch.Generator().manual_seed(0)


def seen(x, name, *words):
    return evasion(name, *words).queries(x, {}, generator())


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=generator())


def as_bytes(x):
    return (x * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture
def bench(built):
    return fb.open(*TINY, f"store={built[0]}", "method=random", FAMILIES)


def prepare(bench):
    """Make what the evasion needs, here rather than in a worker, which takes seconds to start."""
    bench.store.save(bench.evasion_spec, *bench.evasion_spec.make(bench.workshop))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("mean", Mean(3)),
        ("median", Median(3)),
        ("gaussian_blur", GaussianBlur(0.8, size=3)),
        ("flip", HorizontalFlip()),
    ],
)
def test_the_transform_bank_is_put_to_use(images, name, transform):
    assert evasion(name).transform == transform and evasion(name).draws == 1
    assert torch.equal(seen(images, name), transform(images, generator()))
    assert torch.equal(transform(images, generator()), transform(images, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("gaussian_noise", GaussianNoise(0.05)),
        ("uniform_noise", UniformNoise(0.05)),
        ("resize_pad", ResizePad(12, 19, 20, 0.5, restored=True)),
    ],
)
def test_where_something_is_drawn_each_query_has_draws_of_its_own(images, name, transform):
    assert evasion(name).transform == transform and evasion(name).draws == 3
    alike, g = images[:1].expand(3, -1, -1, -1), generator()
    found = seen(alike, name)
    assert torch.equal(found, torch.cat([transform(x, g) for x in alike.split(1)]))
    assert len({tuple(x.flatten().tolist()) for x in found}) == 3


def test_jpeg_is_what_pillow_decodes(images):
    for x, y in zip(as_bytes(images), seen(images, "jpeg"), strict=True):
        file = io.BytesIO()
        Image.fromarray(x).save(file, "jpeg", quality=65)
        assert (np.asarray(Image.open(file)) == as_bytes(y[None])[0]).all()
    smooth = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    errors = [(seen(smooth, "jpeg", f"evasion.transform.quality={q}") - smooth).abs().max() for q in (20, 65, 100)]
    assert errors[0] > errors[1] > errors[2] < 0.01


def test_bits_are_rounded_or_cut_off():
    # 8-bit 7 = 0b111, 8 = 0b1000, 100 = 0b1100100, 255; five bits leave multiples of 8, or of 255 / 31 = 8.23
    x = torch.tensor([0, 3, 7, 8, 100, 255]).view(1, 1, 2, 3).expand(1, 3, 2, 3) / 255
    cut, rounded = seen(x, "bits_truncate")[0, 0].flatten() * 255, seen(x, "bits_round")[0, 0].flatten() * 31
    torch.testing.assert_close(cut, torch.tensor([0.0, 0, 0, 8, 96, 248]))
    torch.testing.assert_close(rounded, torch.tensor([0.0, 0, 1, 1, 12, 31]))
    every = torch.arange(256).view(1, 1, 16, 16) / 255
    torch.testing.assert_close(seen(every, "bits_truncate", "evasion.transform.bits=8"), every)


def test_nonlocal_means_denoise_in_lab(images):
    noisy = (0.5 + 0.03 * torch.randn(1, 3, 32, 32, generator=generator())).clamp(0, 1)
    assert seen(noisy, "nonlocal_means").std() < 0.5 * noisy.std()
    y = as_bytes(seen(images, "nonlocal_means"))
    lab = cv2.cvtColor(as_bytes(images)[0], cv2.COLOR_RGB2LAB)
    for i in range(3):
        lab[..., i] = cv2.fastNlMeansDenoising(np.ascontiguousarray(lab[..., i]), None, 10, 7, 21)
    assert (y[0] == cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)).all()
    assert (y[0] != as_bytes(images)[0]).any()


def test_the_autoencoder_learns_to_reconstruct_and_does_so_again(bench):
    few, x = bench.data.finetune.pixels()[:100], bench.data.test.pixels()
    made = []
    for epochs in (0, 40, 40):
        thief = evasion("autoencoder", f"evasion.epochs={epochs}")
        with seeded(1) as drawn:
            weights, facts = thief.prepare(few, drawn)
        assert facts["mse"] == pytest.approx(F.mse_loss(thief.queries(few, weights, drawn), few).item())
        made.append(thief.queries(x, weights, drawn))
    assert torch.equal(made[1], made[2])
    assert F.mse_loss(made[1], x) < 0.5 * F.mse_loss(made[0], x) > 0.5 * x.var()
    assert 0 <= made[1].min() <= made[1].max() <= 1
    assert thief.queries(x[..., :13, :15], weights, drawn).shape[2:] == (13, 15)  # sides that cannot be halved thrice


P = torch.tensor([[0.64, 0.32, 0.04], [0.125, 0.004, 0.871]])


def test_answers_by_hand():
    torch.testing.assert_close(
        evasion("round_probabilities").answers(P), torch.tensor([[0.64, 0.32, 0.04], [0.12, 0, 0.87]])
    )
    assert evasion("top1").answers(P).tolist() == [[1, 0, 0], [0, 0, 1]]
    roots = torch.tensor([0.8, 0.32**0.5, 0.2])
    torch.testing.assert_close(evasion("temperature").answers(P)[0], roots / roots.sum())
    torch.testing.assert_close(evasion("temperature", "evasion.temperature=1").answers(P), P)
    nearly = torch.tensor([[0.34, 0.33, 0.33, 0.0]])
    torch.testing.assert_close(
        evasion("temperature", "evasion.temperature=0.001").answers(nearly), torch.tensor([[1.0, 0, 0, 0]])
    )


def test_an_api_that_changes_nothing(images):
    assert evasion("none") == Evasion()
    assert seen(images, "none") is images and Evasion().answers(P) is P


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("jpeg", "evasion.transform.quality=0"), "evasion.transform.quality: expected a whole number from 1 to 100"),
        (("bits_round", "evasion.transform.bits=9"), "evasion.transform.bits: expected a whole number from 1 to 8"),
        (("bits_round", "evasion.transform.by=rouding"), "did you mean 'rounding'"),
        (("temperature", "evasion.temperature=0"), "evasion.temperature: expected a number above 0"),
        (("gaussian_noise", "evasion.draws=0"), "evasion.draws: expected a whole number from 1"),
    ],
)
def test_impossible_parameters_are_refused(words, answer):
    with pytest.raises(UserError, match=answer):
        evasion(*words)


@pytest.mark.parametrize("name", ["jpeg", "top1"])
def test_a_regression_takes_no_evasion(name):
    with pytest.raises(UserError, match=f"evasion={name}: expected a data set .*evasion=none; got 'diabetes"):
        fb.open("experiment=metav_regression", f"evasion={name}").plan()


@pytest.mark.slow
def test_a_run_under_noise(built, tmp_path, bench):
    words = ["method=random", FAMILIES, "evasion=gaussian_noise", "evasion.transform.std=0.3"]
    output = run(built[0], tmp_path / "a", *words)
    assert (
        "0 of 1 evasions, 0 of 14 responses, 0 of 14 accuracies" in output and "random under gaussian_noise" in output
    )
    noisy = pd.read_csv(tmp_path / "a" / "scores.csv").set_index("suspect")
    clean = pd.read_csv(built[1] / "scores.csv").set_index("suspect")
    assert set(noisy.evasion) == {"gaussian_noise"}
    assert noisy.score["source"] < clean.score["source"] == 1.0
    assert (noisy.accuracy != clean.accuracy).all() and noisy.accuracy["source"] < clean.accuracy["source"]
    bench = fb.open(*TINY, f"store={built[0]}", *words)
    spec = bench.responses()["source"]
    answers = bench.store.load(spec).tensors["answers"]
    assert answers.shape == (3, 20) and len({tuple(drawn.tolist()) for drawn in answers}) > 1
    labels = bench.fingerprint().state["labels"]
    assert noisy.score["source"] == pytest.approx((answers == labels).float().mean().item())
    again, _ = spec.make(bench.workshop)
    assert torch.equal(again["answers"], answers)
    facts = bench.store.facts(bench.accuracies()["source"])
    assert facts == {**facts, **bench.accuracies()["source"].make(bench.workshop)[1]}


def test_each_suspect_gets_draws_of_its_own_and_answers_at_once_as_one_by_one(bench):
    under = bench.under("uniform_noise")
    queries, spec = under.fingerprint().queries, under.evasion_spec
    prepare(under)
    one, other = (under.models[name].key for name in ("source", "finetune/FTLL"))
    drawn = spec.draw(queries, under.workshop, one)
    assert torch.equal(drawn, spec.draw(queries, under.workshop, one))
    assert not torch.equal(drawn, spec.draw(queries, under.workshop, other))
    answers = under.responses()["source"].make(under.workshop)[0]["answers"]
    source = under.model("source")
    assert torch.equal(answers, torch.stack([source(x).argmax(1) for x in drawn]))


def test_queries_and_their_8_bit_copies_are_both_asked(built):
    bench = fb.open(*TINY, f"store={built[0]}", "method=random", "attack=source", "seed=7")
    queries = torch.rand(20, 3, 16, 16, generator=generator())
    bench.store.save(bench.fingerprint_spec, {"queries": queries}, {"yields": {}, "note": "", "queries": 20})
    spec, source = bench.responses()["source"], bench.model("source")
    answered = type(spec)(spec.fingerprint, spec.suspect, "output", None).make(bench.workshop)[0]
    for name, x in (("answers", queries), ("answers_8bit", eight_bit(queries))):
        torch.testing.assert_close(answered[name], source(x).softmax(1)[None])
    assert not torch.equal(answered["answers"], answered["answers_8bit"])


def test_equal_means_over_draws_are_equal():
    labels = torch.zeros(100, dtype=torch.long)
    made = Fingerprint(torch.zeros(100, 3, 2, 2), {"labels": labels})

    def mean(*matches):
        draws = torch.stack([(torch.arange(100) >= n).long() for n in matches])
        return _mean(lambda fingerprint, drawn: matching_rate(fingerprint.state["labels"], drawn), made, draws)

    assert mean(63, 64, 64) == mean(64, 63, 64) == mean(64, 64, 63) == mean(62, 64, 65) == round(191 / 300, 12)


def test_an_evasion_of_answers_changes_outputs_and_no_label(bench):
    honest = bench.responses()["source"].make(bench.workshop)[0]
    prepare(bench.under("top1"))
    evaded = bench.under("top1").responses()["source"]
    assert all(torch.equal(tensor, honest[name]) for name, tensor in evaded.make(bench.workshop)[0].items())
    full = type(evaded)(evaded.fingerprint, evaded.suspect, "output", evaded.evasion)
    answers = full.make(bench.workshop)[0]["answers"]
    assert answers.shape == (1, 20, 10) and set(answers.unique().tolist()) == {0, 1}
    assert torch.equal(answers.argmax(2), honest["answers"])
    assert bench.under("top1").accuracies() == bench.accuracies() == {}
    assert len(bench.under("jpeg").accuracies()) == 14


def test_the_same_benchmark_under_another_evasion(bench):
    under = bench.under("jpeg")
    assert under.data is bench.data and under.models is bench.models
    assert under.fingerprint_spec is bench.fingerprint_spec and bench.evasion_spec is None
    composed = fb.open(*bench.overrides, "evasion=jpeg")
    assert [spec.key for spec in under.plan()] == [spec.key for spec in composed.plan()]
    assert under.under("none").responses() == bench.responses() != under.responses()
    assert under.under("flip").using("akh").settings.evasion.name == "flip"
    with pytest.raises(UserError, match="did you mean 'median'"):
        bench.under("medain")


def test_another_method_leaves_the_settings_of_the_one_before_behind():
    bench = fb.open("queries=20", "method=naturalfinger", "method.epochs=2")
    other = bench.using("ipguard")
    assert other.overrides == ("queries=20", "method=ipguard") and other.data is bench.data
    assert other.settings == config.compose(other.overrides)
    assert bench.using("naturalfinger") is bench.using(None) is bench
    with pytest.raises(UserError, match="did you mean 'ipguard'"):
        bench.using("ipgard")


@dataclass(frozen=True)
class Mine:
    """A transform of a user's own, which returns what the test says."""

    returns: str

    def __call__(self, x, generator):
        return {"inverted": 1 - x, "shown": 2 * x, "grey": x.mean(1), "bytes": x.byte(), "nothing": None}[self.returns]


@dataclass(frozen=True)
class Sometimes:
    """A transform that does something in half of all cases."""

    def __call__(self, x, generator):
        return 1 - x if torch.rand((), generator=generator) < 0.5 else x


@dataclass(frozen=True)
class InPlace:
    """A random transform that changes what it is given."""

    def __call__(self, x, generator):
        return x.mul_(torch.rand((), generator=generator))


@dataclass(frozen=True)
class Global(Sometimes):
    """One that draws from PyTorch's own generator."""

    def __call__(self, x, generator):
        return x * torch.rand(())


@dataclass(frozen=True, kw_only=True)
class Answers(Evasion):
    """Answers of a user's own, which are what the test says."""

    returns: str

    def answers(self, probabilities):
        return {
            "few": probabilities[:, :2],
            "labels": probabilities.argmax(1),
            "random": torch.rand_like(probabilities),
            "missing": probabilities * float("nan"),
        }[self.returns]


@dataclass(frozen=True, kw_only=True)
class Inverted(Evasion):
    """Queries of a user's own."""

    def queries(self, x, weights, generator):
        return 1 - x


@dataclass(frozen=True, kw_only=True)
class Misspelt(Evasion):
    """An evasion that changes nothing."""

    def query(self, x, weights, generator):
        return 1 - x


@dataclass(frozen=True, kw_only=True)
class Cropping(Evasion):
    """Queries of a size that is drawn."""

    def queries(self, x, weights, generator):
        return x[..., : int(torch.randint(8, 16, (), generator=generator))]


class Thawed:
    """A transform that no key can be made of."""

    def __call__(self, x, generator):
        return x


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (
            Mine("shown"),
            r"evasion=jpeg, Mine: expected transform\(x, generator\) of .* in \[0, 1\] to return .*; got '0\.\d+ to 1",
        ),
        (Mine("grey"), r"evasion=jpeg, Mine: expected .*; got 'torch.float32 \(2, 16, 16\)'"),
        (Mine("bytes"), r"evasion=jpeg, Mine: expected .*; got 'torch.uint8 \(2, 3, 16, 16\)'"),
        (Mine("nothing"), r"evasion=jpeg, Mine: expected .*; got TypeError: expected Tensor .* got NoneType"),
        (Mine("typo"), r"evasion=jpeg, Mine: expected .*; got KeyError: no 'typo'"),
        (Sometimes(), r"evasion=jpeg, Sometimes: evasion.draws: expected 3 or so of what is random; got 1$"),
        (InPlace(), r"evasion=jpeg, InPlace: evasion.draws: expected 3 or so of what is random; got 1$"),
        (Global(), r"evasion=jpeg, Global: evasion.draws: expected 3 or so of what is random; got 1$"),
        (torch.nn.Identity(), r"evasion=jpeg, Identity: expected .*; got TypeError: .* positional argument"),
        (
            Thawed(),
            r"lists and frozen dataclasses.*; got test_evasions.Thawed; make it a frozen dataclass",
        ),
    ],
)
def test_a_transform_of_ones_own_that_is_none_is_refused_before_anyone_is_asked(bench, monkeypatch, transform, told):
    under = bench.under("jpeg")
    monkeypatch.setattr("fingerbench.config.build", lambda node: Transformed(transform=transform))
    with pytest.raises(UserError, match=told):
        _ = under.evasion_spec.key


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (Answers(returns="few"), r"Answers: expected answers\(probabilities\).*; got 'torch.float32 \(2, 2\)'"),
        (Answers(returns="labels"), r"Answers: expected .*; got 'torch.int64 \(2,\)'"),
        (Answers(returns="missing"), r"Answers: expected .* finite ones; got 'some that are not'"),
        (Answers(returns="random"), r"Answers: evasion.draws: expected 3 or so of what is random; got 1$"),
        (Misspelt(), r"evasion=jpeg: expected a method `queries` or `answers`; got 'Misspelt'"),
        (Cropping(draws=3), r"Cropping: expected images of one size; got"),
        (Thawed(), r"evasion=jpeg: expected a class that inherits from .*Evasion; got 'Thawed'"),
    ],
)
def test_an_evasion_of_ones_own_that_is_none_is_refused_before_anyone_is_asked(bench, monkeypatch, made, told):
    under = bench.under("jpeg")
    monkeypatch.setattr("fingerbench.config.build", lambda node: made)
    with pytest.raises(UserError, match=told):
        _ = under.evasion_spec


def test_what_an_evasion_of_ones_own_changes_is_what_it_overrides(bench, monkeypatch):
    under = bench.under("jpeg")
    with monkeypatch.context() as patch:
        patch.setattr("fingerbench.config.build", lambda node: Inverted())
        evasion = under.evasion_spec.evasion
    assert evasion.changes_queries and not evasion.changes_answers
    assert len(under.accuracies()) == len(bench.models)


def test_a_transform_that_draws_from_the_global_generator_repeats(bench, monkeypatch):
    under, x = bench.under("jpeg"), torch.rand(4, 3, 16, 16)
    monkeypatch.setattr("fingerbench.config.build", lambda node: Transformed(transform=Global(), draws=3))
    workshop = SimpleNamespace(load=lambda spec: SimpleNamespace(tensors={}))
    first, second = (under.evasion_spec.draw(x, workshop, "source") for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_a_transform_of_ones_own_is_put_to_use(bench, monkeypatch):
    under, x = bench.under("jpeg"), torch.rand(2, 3, 16, 16)
    monkeypatch.setattr("fingerbench.config.build", lambda node: Transformed(transform=Mine("inverted")))
    assert torch.equal(under.evasion_spec.evasion.queries(x, {}, generator()), 1 - x)
    again = bench.under("jpeg")
    monkeypatch.setattr("fingerbench.config.build", lambda node: Transformed(transform=Sometimes(), draws=3))
    seen = again.evasion_spec.evasion.queries(torch.zeros(50, 3, 16, 16), {}, generator()).mean((1, 2, 3))
    assert 0 < seen.sum() < 50, "each query has draws of its own"


def test_torchvisions_transforms_can_be_named_beside_a_cpu_build_of_torch():
    node = "OmegaConf.create({'_target_': 'torchvision.transforms.Grayscale'})"
    code = f"from omegaconf import OmegaConf; from fingerbench import config; print(config.build({node}))"
    assert finish(start(["-c", code])).startswith("Grayscale(")


def test_an_evasion_of_ones_own_is_one_to_be_under(bench, tmp_path):
    (tmp_path / "evasion").mkdir()
    own = (ROOT / "conf" / "evasion" / "jpeg.yaml").read_text().replace("name: jpeg", "name: mine")
    (tmp_path / "evasion" / "mine.yaml").write_text(own)
    under = fb.open(*bench.overrides, f"hydra.searchpath=[file://{tmp_path}]").under("mine")
    assert under.evasion_spec.evasion == bench.under("jpeg").evasion_spec.evasion
    assert under.settings.evasion.name == "mine"
