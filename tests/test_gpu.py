"""What a device computes is what the CPU computes: on CUDA (pytest -m gpu), and here on the CPU and on a stand-in.

Each test compares with a second path on the CPU, so that it says something there too.
"""

import copy
import itertools
import os
import random
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import METHODS
from standin import STANDIN, Waits, standin
from torch import nn
from torch.nn import functional as F

from fingerbench import config
from fingerbench.bench import Bench
from fingerbench.data.augment import Augment
from fingerbench.evaluate.specs import AccuracySpec, AgreementSpec, ResponseSpec, fingerprint_of
from fingerbench.gans import train
from fingerbench.nets import Normalise
from fingerbench.ops import matching_rate, pieces, predict, send
from fingerbench.replay import Graphed, Replay, capturing
from fingerbench.seeds import CUBLAS, fix_order, seeded
from fingerbench.store import Artefact
from fingerbench.transforms import GaussianBlur, GaussianNoise, Shear, UniformNoise, shear
from fingerbench.workshop import Workshop, peak_memory, pick_bfloat16, pick_device, revive
from fingerbench.zoo.train import Recipe, Workbench, _schedule, answers, fit, supervise

os.environ |= CUBLAS  # before cuBLAS starts: fix_order asks for it

CPU = torch.device("cpu")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])
EVERY = ["cpu", STANDIN.type, CUDA]
OTHERS = [STANDIN.type, CUDA]  # for what would compare the CPU with itself
THEFTS = ("finetune/FTAL", "prune/0.5", "noise/9", "adversarial/0.5", "distill/resnet18", "knockoff/resnet18")
GANS = ("wgan_gp", "sagan", "logan", "contragan", "icrgan", "reacgan")
SETTINGS = [
    f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]",
    "profile=tiny",
    "precision=float32",
    "queries=20",
    "data.transfer=100",
    "zoo.training.epochs=3",
    "zoo.tuning.epochs=5",  # on a GPU the fourth step of a size is captured, and then replayed
]


@pytest.fixture(params=EVERY)
def device(request):
    """A device on which float32 is float32: TF32, on by default in cuDNN, keeps 10 bits of 23."""
    conv, product = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with standin() if request.param == STANDIN.type else nullcontext():
        yield torch.device(request.param)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = conv, product


def slow_but(quick, names):
    """Return the names as parameters, slow but for those that are quick enough for CI."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


others = pytest.mark.parametrize("device", OTHERS, indirect=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """What is made on the CPU, shared by the tests."""
    return tmp_path_factory.mktemp("store")


def opened(store, *words):
    return Bench(config.compose([*SETTINGS, f"store={store}", *words]))


def shop(bench, device):
    return Workshop(bench.store, bench.data, device)


def made(bench, spec, device):
    """Make on a device what is missing of a spec and of what it needs; return the spec."""
    for needed in spec.needs():
        made(bench, needed, device)
    if not bench.store.has(spec):
        bench.store.save(spec, *spec.make(shop(bench, device)))
    return spec


def test_a_model_trained_on_the_cpu_answers_alike(store, device):
    bench = opened(store, "method=random", "attack=source")
    spec = made(bench, bench.zoo.original(), CPU)
    x = bench.data.test.pixels()[:100]
    plain = spec.network(bench.data.shape)
    plain.load_state_dict(bench.store.load(spec).tensors)
    here = torch.cat([plain.double().eval()(image[None].double()) for image in x]).detach()
    there = predict(spec.load(shop(bench, device)), x.to(device))
    assert there.device.type == device.type and here.argmax(1).unique().numel() > 5
    assert torch.equal(there.cpu().argmax(1), here.argmax(1))
    torch.testing.assert_close(there.cpu().double(), here, rtol=1e-3, atol=1e-3)


def test_answers_are_float32_though_convolutions_may_round(device):
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default; the fixture puts back what was
    with seeded(0):
        net, x = nn.Sequential(*block(3, 64), *block(64, 64)).eval(), torch.rand(8, 3, 32, 32)
    there = predict(net.to(device), x.to(device)).cpu()
    torch.testing.assert_close(there.double(), net.cpu().double()(x.double()).detach(), rtol=1e-4, atol=1e-6)


def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)


def blank():
    """A network in which rounding errors grow slowly: at this rate 1e-6 of the weights moves no loss by 0.01.

    VGG9 at four times the rate has losses moved by 0.1 and more by 1e-7 of its weights.
    """
    with seeded(0):
        return nn.Sequential(*block(3, 8), *block(8, 16), nn.Flatten(), nn.Linear(256, 10))


RECIPE = Recipe(epochs=10, batch=32, lr=0.005, momentum=0.9, weight_decay=5e-4, schedule="cosine")


def plain_losses(images, augment):
    """Return the losses of the epochs that `fit` should meet, from a loop of its own on the CPU, five batches each."""
    model, generator = blank().train(), torch.Generator().manual_seed(1)
    sgd = torch.optim.SGD(model.parameters(), RECIPE.lr, RECIPE.momentum, weight_decay=5e-4, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 50)
    losses = []
    for _ in range(RECIPE.epochs):
        total = 0.0
        for index in torch.randperm(160, generator=generator).tensor_split(5):
            loss = F.cross_entropy(model(augment(images.x[index].float() / 255, generator)), images.y[index])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            cosine.step()
            total += loss.item()
        losses.append(total / 5)
    return losses


def test_training_meets_the_same_losses(store, device):
    bench, augment = opened(store, "method=random", "attack=source"), Augment(pad=2, flip=True)
    images = type(bench.data.a)(bench.data.a.x[:160], bench.data.a.y[:160])
    bound = images.to(device)
    workbench = Workbench(device, False, augment, torch.Generator().manual_seed(1), bench.data.task)
    fit(blank(), bound.x, lambda outputs, _x, index: F.cross_entropy(outputs, bound.y[index]), RECIPE, workbench)
    expected = plain_losses(images, augment)
    assert len(workbench.losses) == 10 and expected[-1] < expected[0] - 0.5
    torch.testing.assert_close(workbench.losses[:1], expected[:1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(workbench.losses, expected, rtol=0.05, atol=0.02)  # rounding errors grow step by step


LOOKS = """
import torch
from fingerbench.replay import Replay
x = torch.ones(4, device="cuda")
again = Replay(lambda y: y / y.sum().item(), x.device)
[again(x) for _ in range(5)]
"""


@pytest.mark.gpu
@NO_GPU
def test_what_looks_at_a_value_cannot_be_replayed_and_is_told_the_way_out(monkeypatch):
    # In a process of its own, which a capture that failed does not leave as it was.
    done = subprocess.run([sys.executable, "-c", LOOKS], capture_output=True, text=True, check=False)
    assert done.returncode and "run the same command again with replay=false" in done.stderr
    monkeypatch.setattr("fingerbench.replay.allowed", False)
    device = torch.device("cuda")
    plain = Replay(lambda y: y / y.sum().item(), device)
    assert all(torch.equal(plain(torch.ones(4, device=device)).cpu(), torch.full((4,), 0.25)) for _ in range(5))


@pytest.mark.parametrize("source", ["python", "numpy", "torch", "own"])
def test_what_draws_on_the_cpu_is_not_captured(source):
    own = torch.Generator().manual_seed(0)
    draw = {
        "python": random.random,
        "numpy": np.random.rand,
        "torch": lambda: torch.rand(()),
        "own": lambda: torch.rand((), generator=own),
    }
    with capturing([own]):
        torch.ones(3).sum()
    with pytest.raises(RuntimeError, match=r"it draws on the CPU.*replay=false"), capturing([own]):
        draw[source]()


@pytest.mark.gpu
@NO_GPU
def test_dropout_is_drawn_anew_in_every_replay():
    device = torch.device("cuda")
    again = Replay(lambda x: F.dropout(x, 0.5), device)
    seen = [again(torch.ones(1000, device=device)).cpu().clone() for _ in range(8)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("schedule", ["steps", "cosine", "onecycle"])
def test_replayed_trainings_are_those_whose_kernels_are_launched(store, schedule, monkeypatch):
    bench, device = opened(store, "method=random", "attack=source"), torch.device("cuda")
    images = type(bench.data.a)(bench.data.a.x[:335], bench.data.a.y[:335]).to(device)
    assert {len(rows) for rows in torch.arange(335).tensor_split(pieces(335, RECIPE.batch))} == {33, 34}
    recipe, trained = replace(RECIPE, epochs=3, schedule=schedule, milestones=(0.4, 0.8)), []
    for replayed in (True, False):
        monkeypatch.setattr("fingerbench.replay.allowed", replayed)
        with seeded(0) as generator:
            model = nn.Sequential(*block(3, 8), *block(8, 16), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10))
            workbench = Workbench(device, True, Augment(2, True), generator, bench.data.task)
            supervise(model, images, recipe, workbench)
        trained.append((workbench.losses, model.state_dict()))
    (losses, weights), (expected, others) = trained
    assert losses == pytest.approx(expected, rel=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("name", ["sagan", "contragan", "reacgan"])  # no other's losses can be replayed
def test_replayed_gans_are_those_whose_kernels_are_launched(store, name, monkeypatch):
    bench, device = opened(store, "method=naturalfinger", "attack=source", f"gan={name}"), torch.device("cuda")
    # By turns batches of 16 and of 8, each often enough to be replayed; an average would be what the first step gave.
    design = bench.fingerprint_spec.gan.design
    design = replace(design, steps=6, batch=16, discriminator_steps=2, ema_decay=0.0)
    assert not design.draws
    owned = type(bench.data.a)(bench.data.a.x[:24], bench.data.a.y[:24])
    z, images = torch.randn(8, design.latent, generator=torch.Generator().manual_seed(2)), []
    for replayed in (True, False):
        monkeypatch.setattr("fingerbench.replay.allowed", replayed)
        gan = design.train(owned, 10, torch.Generator().manual_seed(1), device)
        with torch.no_grad():
            images.append(gan.generator(z[:, : gan.latent].to(device), torch.arange(8, device=device)).cpu())
    torch.testing.assert_close(*images, rtol=0.02, atol=0.02)


@pytest.mark.gpu
@NO_GPU
def test_a_compiled_network_learns_the_same(store):
    bench, device = opened(store, "method=random", "attack=source"), torch.device("cuda")
    images = type(bench.data.a)(bench.data.a.x[:160], bench.data.a.y[:160]).to(device)
    losses = []
    for compiled in (False, True):
        generator = torch.Generator().manual_seed(1)
        workbench = Workbench(device, False, Augment(2, True), generator, bench.data.task, compiled=compiled)
        supervise(blank(), images, RECIPE, workbench)
        losses.append(workbench.losses)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.01)


def test_a_graphed_network_gives_the_same_gradients(device):
    with seeded(0):
        plain = (
            nn.Sequential(*block(3, 8), *block(8, 16), nn.Flatten(), nn.Linear(256, 10)).eval().requires_grad_(False)
        )
    graphed = Graphed(copy.deepcopy(plain).to(device), device)
    for n in (4, 4, 6, 4):
        x = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
        there = x.to(device).requires_grad_(True)
        # Asked twice before any gradient is taken, as MetaFinger may ask its anchor.
        loss = (graphed(there).square() + 2 * graphed(there * 0.5)).sum()
        (gradient,) = torch.autograd.grad(loss, there)
        here = x.requires_grad_(True)
        (expected,) = torch.autograd.grad((plain(here).square() + 2 * plain(here * 0.5)).sum(), here)
        torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-3, atol=1e-4)


def test_a_replayed_function_does_what_it_does(device):
    weight = torch.ones(3, device=device)

    def act(x, y):
        weight.add_(x.sum(0))
        return weight * y

    again = Replay(act, device)
    for i in range(12):
        x, y = torch.full((4 if i % 3 else 2, 3), float(i)), torch.tensor([1.0, 2.0, 3.0])
        before = weight.clone().cpu()
        torch.testing.assert_close(again(x.to(device), y.to(device)).cpu(), (before + x.sum(0)) * y)


def test_augmentation_crops_alike(device):
    pad, n, side = 4, 50, 16
    x = torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    there = Augment(pad, flip=True)(x.to(device), torch.Generator().manual_seed(1)).cpu()
    generator = torch.Generator().manual_seed(1)
    corner = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    mirrored = torch.rand(n, generator=generator) < 0.5
    for i, image in enumerate(F.pad(x, (pad,) * 4)):
        top, left = corner[:, i].tolist()
        crop = image[:, top : top + side, left : left + side]
        assert torch.equal(there[i], crop.flip(2) if mirrored[i] else crop)


@pytest.mark.parametrize("theft", THEFTS)
@others
def test_an_attack_makes_the_same_model(store, device, theft):
    bench = opened(store, "method=random", f"attack={theft.partition('/')[0]}")
    spec = made(bench, bench.models[theft], CPU)
    tensors, facts = spec.make(shop(bench, device))
    assert facts["device"] == device.type and all(t.device.type == device.type for t in tensors.values())
    copy = revive(spec.network(bench.data.shape), Artefact({k: t.cpu() for k, t in tensors.items()}, {}))
    x = bench.data.test.pixels()
    answers, expected = predict(copy, x).argmax(1), predict(spec.load(shop(bench, CPU)), x).argmax(1)
    born = bench.attacks[theft.partition("/")[0]].students  # from random weights
    assert matching_rate(expected, answers) > (0.6 if born else 0.8)  # rounding errors grow in training
    assert facts["accuracy"] == pytest.approx(matching_rate(bench.data.test.y, answers), abs=0.02)


def test_a_teacher_says_on_a_device_what_it_says_on_the_cpu(store, device):
    bench = opened(store, "method=random", "attack=source")
    victim = made(bench, bench.zoo.original(), CPU).load(shop(bench, device))
    x = bench.data.test.pixels()[:100]
    task = Workbench(device, True, Augment(2, True), torch.Generator(), bench.data.task)  # as students in bfloat16
    there = answers(victim, bench.data.test.x[:100].to(device), task)(x.to(device), torch.arange(100))
    expected = predict(victim.to(CPU), x)
    assert there.dtype == torch.float32 and there.device.type == device.type
    assert matching_rate(there.cpu().argmax(1), expected.argmax(1)) > 0.95
    torch.testing.assert_close(there.cpu(), expected, rtol=0.05, atol=0.2)


def score(bench, device):
    """Return the score of the source by a stored fingerprint, from answers that it gives on a device."""
    response = ResponseSpec(bench.fingerprint_spec, bench.zoo.original(), bench.method.access, None)
    answers = response.make(shop(bench, device))[0]["answers"].cpu()
    fingerprint = fingerprint_of(bench.store.load(bench.fingerprint_spec))
    return bench.method.similarity(fingerprint, answers[0])


@pytest.mark.parametrize("method", slow_but({*METHODS} - {"naturalfinger"}, METHODS))
@others
def test_a_fingerprint_made_on_a_device_is_answered_on_the_cpu(store, device, method, tmp_path):
    longer = ["method.epochs=60"] if method == "naturalfinger" else []  # else no query passes its screening
    words = [f"method={method}", "attack=source", *longer]
    for needed in opened(store, *words).fingerprint_spec.needs():
        made(opened(store, *words), needed, CPU)
    shutil.copytree(store, tmp_path / "store")
    bench = opened(tmp_path / "store", *words)  # a fingerprint made elsewhere has the same key
    made(bench, bench.fingerprint_spec, device)
    queries = bench.store.facts(bench.fingerprint_spec)["queries"]
    assert queries > 0 and score(bench, CPU) == pytest.approx(score(bench, device), abs=1.01 / queries)  # one answer
    if method in ("ipguard", "akh", "random", "freqgan"):  # whose labels are the source's own
        assert score(bench, CPU) >= 0.95


def test_cudnn_makes_no_trials_for_what_is_asked_once(store, monkeypatch):
    bench = opened(store, "method=random", "attack=[source,finetune]", "evasion=jpeg")
    spec = made(bench, bench.models["finetune/FTAL"], CPU)
    evasion, fingerprint = made(bench, bench.evasion_spec, CPU), made(bench, bench.fingerprint_spec, CPU)
    trials = []

    def noted(model, *images):
        trials.append(torch.backends.cudnn.benchmark)
        return predict(model, *images)

    monkeypatch.setattr("fingerbench.evaluate.specs.predict", noted)
    monkeypatch.setattr("fingerbench.zoo.model.predict", noted)
    fix_order(False)
    asked = [
        ResponseSpec(fingerprint, spec, bench.method.access, None),
        AccuracySpec(spec, evasion),
        AgreementSpec(spec, bench.zoo.original()),
        spec,  # is measured once it is made
    ]
    for one in asked:
        before = len(trials)
        one.make(shop(bench, CPU))
        assert len(trials) > before and torch.backends.cudnn.benchmark
    assert not any(trials)


@pytest.mark.parametrize("name", config.options("evasion"))
@others
def test_an_evasion_changes_queries_alike(store, device, name):
    short = ["evasion.epochs=2"] if name == "autoencoder" else []
    bench = opened(store, "method=random", "attack=source", f"evasion={name}", *short)
    x, evasion = bench.data.test.pixels()[:10], bench.evasion_spec
    if evasion is None:
        return
    bench.store.save(evasion, *evasion.make(shop(bench, CPU)))
    seen = [evasion.draw(x.to(d), shop(bench, d)).cpu() for d in (CPU, device)]
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)
    outputs = torch.randn(10, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    answers = [evasion.evasion.answers(outputs.to(d)).cpu() for d in (CPU, device)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    weights, _ = evasion.make(shop(bench, device))
    assert all(tensor.device.type == device.type and bool(tensor.isfinite().all()) for tensor in weights.values())


@pytest.mark.parametrize("name", slow_but(("sagan",), GANS))
@others
def test_a_gan_takes_the_same_steps(store, device, name, monkeypatch):
    monkeypatch.setattr(train, "SETTLE_BATCHES", 2)
    bench = opened(store, "method=naturalfinger", "attack=source", f"gan={name}", "gan.steps=3")
    design = bench.fingerprint_spec.gan.design
    z = torch.randn(8, design.latent, generator=torch.Generator().manual_seed(2))

    def images(place):
        gan = design.train(bench.data.a.to(place), 10, torch.Generator().manual_seed(1), place)
        with torch.no_grad():
            return gan.generator(z[:, : gan.latent].to(place), torch.arange(8, device=place)).cpu()

    here, there = images(CPU), images(device)
    assert here.std() > 0
    torch.testing.assert_close(there, here, rtol=0.05, atol=0.05)


def test_what_a_network_does_not_store_goes_where_its_weights_are(device):
    model = nn.Sequential(Normalise([0.5] * 3, [0.25] * 3), nn.Flatten(), nn.Linear(12, 2))
    tensors = {name: tensor.to(device) for name, tensor in model.state_dict().items()}
    x = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        hollow = nn.Sequential(Normalise([0.5] * 3, [0.25] * 3), nn.Flatten(), nn.Linear(12, 2))
    torch.testing.assert_close(revive(hollow, Artefact(tensors, {}))(x.to(device)).cpu(), model(x).detach())


@pytest.mark.parametrize("name", ["cpu", CUDA])
def test_peak_memory_sees_what_a_block_takes(name):
    device = pick_device(name)
    torch.cuda.empty_cache()  # else it takes what PyTorch holds already
    with peak_memory(device) as peak:
        before = peak()
        block = torch.ones(64, 2**20, dtype=torch.uint8, device=device)
        assert peak() >= before + 60 and int(block.sum()) == 64 * 2**20


@pytest.mark.gpu
@NO_GPU
def test_auto_is_the_gpu_and_its_bfloat16():
    device = pick_device("auto")
    assert device.type == "cuda"
    assert pick_bfloat16("auto", device, "mobilenetv2") == (torch.cuda.get_device_capability()[0] >= 8)
    assert pick_bfloat16("bfloat16", device, "resnet18") and not pick_bfloat16("float32", device, "resnet18")


def test_what_is_sent_arrives(device):
    x = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    there = [send(x + i, device) for i in range(100)]  # memory of one that is on its way must not be taken for the next
    assert all(t.device.type == device.type and torch.equal(t.cpu(), x + i) for i, t in enumerate(there))
    assert torch.equal(send(there[0], CPU), x)


def test_what_is_sent_to_a_gpu_is_pinned_first(monkeypatch):
    x, steps = torch.ones(3), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: steps.append("pinned") or x)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, device, non_blocking: steps.append((device.type, non_blocking)) or x
    )
    assert send(x, torch.device("cuda")) is x and send(x, CPU) is x
    assert steps == ["pinned", ("cuda", True), ("cpu", False)]


@pytest.mark.parametrize("schedule", ["steps", "cosine", "onecycle"])
def test_a_rate_on_the_device_is_that_of_the_number(schedule):
    recipe, rates = replace(RECIPE, schedule=schedule, milestones=(0.4, 0.8)), []
    for rate in (recipe.lr, torch.tensor(recipe.lr)):
        sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate, recipe.momentum, nesterov=True, fused=True)
        planned, seen = _schedule(sgd, recipe, 50), []
        for _ in range(50):
            seen.append(float(sgd.param_groups[0]["lr"]))
            sgd.step()
            planned.step()
        rates.append(seen)
        assert sgd.param_groups[0]["lr"] is rate or not isinstance(rate, torch.Tensor)  # a graph reads it where it lies
    assert rates[1] == pytest.approx(rates[0], rel=1e-5) and len(set(rates[0])) > 2


@pytest.mark.parametrize(("ended", "told"), [("previous error during capture", "looks at a value"), ("other", "other")])
def test_the_error_that_the_end_of_a_capture_hides_is_told(ended, told):
    with pytest.raises(RuntimeError, match=rf"cannot be replayed \(.*{told}\)"), capturing():
        try:
            raise RuntimeError("looks at a value")
        except RuntimeError:
            raise RuntimeError(f"CUDA error: {ended}")  # noqa: B904 - as a context that is left raises it


def test_lack_of_memory_in_a_capture_stays_what_it_is():
    with pytest.raises(torch.OutOfMemoryError), capturing():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except RuntimeError:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904


class Swaps(nn.Module):
    """Puts a new tensor in the place of its buffer, which a graph would not see."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return self.layer(x.flatten(1))


def test_a_network_that_swaps_its_buffers_is_not_replayed(store, monkeypatch):
    bench = opened(store, "method=random", "attack=source")
    images = type(bench.data.a)(bench.data.a.x[:64], bench.data.a.y[:64])
    workbench = Workbench(CPU, False, Augment(0, False), torch.Generator(), bench.data.task)
    supervise(Swaps(), images, RECIPE, workbench)
    monkeypatch.setattr(Replay, "replayed", True)
    with pytest.raises(RuntimeError, match=r"new tensors in the place of its buffers.*replay=false"):
        supervise(Swaps(), images, RECIPE, workbench)


def waited(work, *sizes):
    """Return how often the host waits for the stand-in in the work of each size."""
    counts = []
    for size in sizes:
        with standin() as device, Waits() as waits:
            work(device, size)
        counts.append(waits.count)
    return counts


def test_no_step_of_a_training_waits_for_the_gpu(store):
    bench = opened(store, "method=random", "attack=source")

    def epoch(device, batches):
        rows = slice(batches * 4)
        images = type(bench.data.a)(bench.data.a.x[rows], bench.data.a.y[rows]).to(device)
        workbench = Workbench(device, False, Augment(2, True), torch.Generator(), bench.data.task)
        supervise(blank(), images, replace(RECIPE, epochs=1, batch=4), workbench)

    few, many = waited(epoch, 2, 5)
    assert few == many > 0  # an epoch does


@pytest.mark.parametrize("name", GANS)
def test_no_step_of_a_gan_waits_for_the_gpu(store, name, monkeypatch):
    monkeypatch.setattr(train, "SETTLE_BATCHES", 1)
    bench = opened(store, "method=naturalfinger", "attack=source", f"gan={name}")

    def steps(device, count):
        design = replace(bench.fingerprint_spec.gan.design, steps=count)
        design.train(bench.data.a, 10, torch.Generator().manual_seed(1), device)

    few, many = waited(steps, 1, 3)
    assert few == many > 0


def test_no_step_of_freqgan_waits_for_the_gpu(store):
    bench = opened(store, "method=freqgan", "attack=source", "method.epochs=1")
    source = made(bench, bench.zoo.original(), CPU)

    def epoch(device, batches):
        here = bench.fingerprint_spec._setting(shop(bench, device), torch.Generator().manual_seed(0))
        method = replace(bench.method, batch=len(here.train) // batches)
        method._train(here, torch.zeros(len(here.train), dtype=torch.long).to(device))

    assert source.key == bench.fingerprint_spec.source.key
    few, many = waited(epoch, 2, 4)
    assert few == many > 0


def test_no_transform_waits_for_the_gpu():
    x = torch.rand(2, 3, 9, 9)
    bank = (GaussianNoise(0.1), UniformNoise(0.1), GaussianBlur(0.8), Shear(0.1))

    def draw(device, transform):
        transform(send(x, device), torch.Generator())

    assert waited(draw, *bank) == [0] * len(bank)
    fix_order(True)
    try:
        assert waited(draw, *bank) == [0] * len(bank)
    finally:
        fix_order(False)
    assert waited(lambda device, _: x.to(device).sum().item(), 0) == [2]


def test_the_stand_in_refuses_what_cuda_refuses():
    here = torch.rand(3, 3)
    with standin() as device:
        there = here.to(device)
        assert torch.equal((2 * there @ there).cpu(), 2 * here @ here) and there[here[0] > 2].device.type == device.type
        for mixed in (lambda: there + here, lambda: here[there.argmax(1)], lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mixed()
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=device, generator=torch.Generator())


@others
def test_transforms_have_repeatable_gradients_there(device):
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    fix_order(True)
    try:
        results = []
        for place in (CPU, device, device):
            pixels = x.to(place).requires_grad_(True)
            moved = shear(pixels, 0.1, -0.2) * 2 + GaussianBlur(0.8)(pixels, torch.Generator())
            results.append([moved.detach().cpu(), torch.autograd.grad(moved.square().sum(), pixels)[0].cpu()])
    finally:
        fix_order(False)
    for here, there, again in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
        assert torch.equal(there, again)
