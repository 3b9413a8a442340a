"""Data sets: sizes, splits, transfer images, augmentation, and one clear line for what is damaged."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import fingerbench as fb
from fingerbench import config
from fingerbench.data import SPLITS, check, digest
from fingerbench.data.augment import Augment
from fingerbench.data.cifar10 import Cifar10
from fingerbench.data.digits import Digits, enlarge
from fingerbench.data.folder import read_folder, spaced
from fingerbench.data.glyphs import glyphs
from fingerbench.data.imagefolder import ImageFolder
from fingerbench.data.splits import split
from fingerbench.errors import UserError
from fingerbench.records import Images
from fingerbench.task import Classification

CONF = Path(__file__).resolve().parents[1] / "conf" / "data"
REAL = Path(os.environ.get("FINGERBENCH_DATA", "missing"))
real = pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py").is_dir(),
    reason="set FINGERBENCH_DATA to a folder with cifar-10-batches-py",
)


@pytest.fixture(scope="module")
def digits():
    return Digits(transfer=300).load()


@pytest.fixture(scope="module")
def cifar10():
    return Cifar10(str(REAL)).load()


def test_digits_have_the_documented_sizes_types_and_range(digits):
    check(digits)
    assert [len(getattr(digits, name)) for name in SPLITS] == [600, 600, 298, 299, 300]
    assert digits.shape == (3, 16, 16)
    assert digits.task == Classification(10)
    for name in SPLITS:
        x = getattr(digits, name).x
        assert x.dtype == torch.uint8
        assert x.min() == 0
        assert x.max() == 255


def test_digits_splits_are_disjoint_and_cover_the_set(digits):
    from sklearn.datasets import load_digits

    parts = torch.cat([getattr(digits, name).x for name in SPLITS[:-1]])
    whole = enlarge(load_digits().images, 16)
    assert sorted(row.tobytes() for row in parts.numpy()) == sorted(row.tobytes() for row in whole.numpy())


def test_digits_splits_keep_the_class_frequencies(digits):
    frequencies = [getattr(digits, name).y.bincount() / len(getattr(digits, name)) for name in SPLITS[:-1]]
    assert (torch.stack(frequencies) - frequencies[0]).abs().max() < 0.005


def test_digits_are_the_same_every_time_and_other_for_another_seed(digits):
    assert digest(Digits(transfer=300).load()) == digest(digits)
    assert digest(Digits(transfer=300, seed=1).load()) != digest(digits)


@pytest.mark.parametrize("wrong", [{"half": 900}, {"half": 5}, {"size": 8}, {"transfer": 0}])
def test_impossible_digits_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=rf"expected {name} from .* set data\.{name}="):
        Digits(**wrong).load()


def test_enlarge_keeps_flat_images_flat_and_spans_the_range():
    levels = np.stack([np.zeros((8, 8)), np.full((8, 8), 16)])
    assert enlarge(levels, 16).flatten(1).unique(dim=1).tolist() == [[0], [255]]


def test_split_is_scikit_learns():
    from sklearn.model_selection import train_test_split

    y = torch.arange(200) % 7
    images = Images(torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1), y)
    first, second = split(images, 80, seed=3)
    expected = train_test_split(np.arange(200), train_size=80, stratify=y.numpy(), random_state=3)
    assert first.x.flatten().tolist() == expected[0].tolist()
    assert second.x.flatten().tolist() == expected[1].tolist()


@pytest.mark.parametrize("first", [6, 194])
def test_split_too_small_for_its_classes_is_refused(first):
    images = Images(torch.zeros(200, 1, 1, 1, dtype=torch.uint8), torch.arange(200) % 7)
    with pytest.raises(UserError, match=f"expected a size of 7 to 193, got {first}"):
        split(images, first)


def test_glyphs_repeat_by_seed_and_look_like_digits():
    from sklearn.datasets import load_digits

    first, again, other = glyphs(200, 0), glyphs(200, 0), glyphs(200, 1)
    assert (first == again).all()
    assert (first != other).any()
    assert first.shape == (200, 8, 8)
    assert first.min() == 0
    assert first.max() == 16
    assert (first.max(axis=(1, 2)) > 0).all(), "an empty glyph"
    assert abs(first.mean() - load_digits().images.mean()) < 1.5
    assert len(np.unique(first, axis=0)) == 200


def test_transfer_images_carry_no_labels(digits):
    assert digits.transfer.y.tolist() == [0] * 300


def test_digest_sees_every_pixel_and_label(digits):
    x, y = digits.test.x.clone(), digits.test.y.clone()
    x[5, 1, 7, 7] ^= 1
    y[5] = (y[5] + 1) % 10
    changed = [
        replace(digits, test=Images(x, digits.test.y)),
        replace(digits, test=Images(digits.test.x, y)),
        replace(digits, a=digits.b, b=digits.a),
        replace(digits, task=Classification(11)),
    ]
    assert len({digest(dataset) for dataset in [digits, *changed]}) == 5
    assert digest(replace(digits, name="other")) == digest(digits)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("a", lambda i: Images(i.x.float(), i.y), "a: expected uint8 images .* got torch.float32"),
        ("b", lambda i: Images(i.x[:0], i.y[:0]), "b: expected uint8 images .* at least one"),
        ("finetune", lambda i: Images(i.x, i.y[1:]), r"finetune: expected int64 labels \(298,\)"),
        ("test", lambda i: Images(i.x[:, :1], i.y), r"test: expected images of shape \(3, 16, 16\)"),
        (
            "test",
            lambda i: Images(i.x, i.y + 1),
            "test: expected each label from 0 to 9; got 10 labels from 1 to 10",
        ),
        ("transfer", lambda i: Images(i.x[..., :8], i.y), "transfer: expected images of shape"),
    ],
)
def test_check_names_what_is_wrong(digits, part, change, message):
    with pytest.raises(UserError, match=message):
        check(replace(digits, **{part: change(getattr(digits, part))}))


@pytest.mark.parametrize(("one", "other"), [("a", "test"), ("b", "finetune"), ("finetune", "test")])
def test_splits_have_next_to_no_image_in_common(digits, one, other, caplog):
    def lent(count):
        given, taken = getattr(digits, one), getattr(digits, other)
        mixed = Images(torch.cat([given.x[:count], taken.x[count:]]), taken.y)
        return replace(digits, **{other: mixed})

    check(digits)
    assert not caplog.text
    check(lent(10))
    assert f"the same images in two splits: {one} and {other} 10; leave copies out" in caplog.text
    with pytest.raises(UserError, match=f"{one} and {other}: expected different images; got 11 that are in both"):
        check(lent(11))


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (
            lambda: torch.zeros(9, 9),
            "data=digits: expected `load` to return a fingerbench.records.Dataset; got 'Tensor'",
        ),
        (lambda: replace(Digits().load(), task=10), "data=digits, task: expected one of fingerbench.task; got 'int'"),
        (
            lambda: replace(Digits().load(), b=None),
            "data=digits, b: expected fingerbench.records.Images; got 'NoneType'",
        ),
        (
            Path("/nowhere/x.npz").read_bytes,
            r"data=digits: `load` raises FileNotFoundError: .* '/nowhere/x.npz' \(\w+\.py, line \d+\); mend that",
        ),
        (lambda: int("x"), r"data=digits: `load` raises ValueError: invalid literal .* \(test_data.py, line \d+\)"),
    ],
)
def test_a_data_set_that_does_not_load_is_told(monkeypatch, load, told):
    monkeypatch.setattr("fingerbench.config.build", lambda node: SimpleNamespace(load=load))
    with pytest.raises(UserError, match=told):
        _ = fb.open("data=digits").data


def test_a_data_set_without_constants_is_told():
    bench = fb.open("data=digits")
    bench.settings.data.constants.augment = None
    with pytest.raises(UserError, match=r"data.constants.augment: expected one, as in conf/data/imagefolder.yaml"):
        _ = bench.data


def test_a_class_of_one_image_cannot_be_split():
    images = Images(torch.zeros(7, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1, 1, 2]))
    with pytest.raises(UserError, match="expected 2 or more of each class, got one of some class"):
        split(images, 3)


def test_augment_identity_passes_the_batch_and_draws_nothing():
    x, generator = torch.rand(2, 3, 4, 4), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert Augment(0, False).identity
    assert Augment(0, False)(x, generator) is x
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("flip", [False, True])
def test_augment_gives_all_crops_of_the_padded_image_and_nothing_else(flip):
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    got = Augment(1, flip)(image.expand(500, 3, 2, 2), torch.Generator().manual_seed(0))
    assert got.dtype == torch.uint8
    assert (got == got[:, :1]).all(), "channels move together"
    crops = {
        *((0, 0, 0, 1), (0, 0, 1, 2), (0, 0, 2, 0)),
        *((0, 1, 0, 3), (1, 2, 3, 4), (2, 0, 4, 0)),
        *((0, 3, 0, 0), (3, 4, 0, 0), (4, 0, 0, 0)),
    }
    mirrored = {(b, a, d, c) for a, b, c, d in crops} if flip else set()
    assert {tuple(crop.flatten().tolist()) for crop in got[:, 0]} == crops | mirrored


def test_augment_flips_half_of_the_images_and_repeats():
    x = torch.rand(1000, 1, 1, 2)
    got = Augment(0, True)(x, torch.Generator().manual_seed(1))
    flipped = (got == x.flip(3)).flatten(1).all(1)
    assert (flipped | (got == x).flatten(1).all(1)).all()
    assert 0.45 < flipped.float().mean() < 0.55
    assert torch.equal(got, Augment(0, True)(x, torch.Generator().manual_seed(1)))


@pytest.mark.gpu
def test_augment_is_the_same_on_a_gpu():
    x = torch.rand(50, 3, 8, 8)
    here, there = (Augment(2, True)(batch, torch.Generator().manual_seed(0)) for batch in (x, x.cuda()))
    assert torch.equal(here, there.cpu())


def test_missing_cifar_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"found no folder .*none; set data.download=true, or set data.root"):
        Cifar10(str(tmp_path / "none")).load()
    with pytest.raises(UserError, match="found no such folder"):
        Cifar10(str(tmp_path)).load()


def test_damaged_cifar_is_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"\x80\x02}q\x00")
    with pytest.raises(UserError, match=r"found no data_batch_2, .*test_batch"):
        Cifar10(str(tmp_path)).load()
    for name in [*(f"data_batch_{n}" for n in range(2, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"\x80\x02}q\x00")
    with pytest.raises(UserError, match="found damaged data_batch_1, ") as caught:
        Cifar10(str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_image_folder_is_read_sorted_as_rgb_of_32_pixels(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.new("L", (40, 64), 7).save(tmp_path / "b.png")
    Image.new("RGB", (32, 32), (1, 2, 3)).save(tmp_path / "deep" / "er" / "a.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "deep" / ".thumbnails").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "deep" / ".thumbnails" / "a.png")
    x = read_folder(tmp_path, 32)
    assert x.dtype == torch.uint8
    assert x[0].unique().tolist() == [7]
    assert x[1, :, 0, 0].tolist() == [1, 2, 3]
    assert x.shape == (2, 3, 32, 32)
    assert torch.equal(read_folder(tmp_path, 32, 1), x[:1]) and torch.equal(read_folder(tmp_path, 32, 9), x)


def test_a_part_of_many_images_is_at_equal_distances():
    assert spaced(10, 4) == [0, 2, 5, 7] and spaced(10, 1) == [0]
    assert spaced(3, None) == spaced(3, 3) == spaced(3, 4) == [0, 1, 2] and spaced(0, 4) == []


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "all"])
def test_cifar10_takes_a_number_of_transfer_images(tmp_path, wrong):
    with pytest.raises(UserError, match=r"data\.transfer: expected null or a number of images"):
        Cifar10(str(tmp_path), transfer=wrong).load()


def test_image_folder_that_is_empty_or_damaged_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected images .* found none; set data.transfer_root=DIR"):
        read_folder(tmp_path, 32)
    whole = tmp_path / "whole.png"
    Image.effect_noise((32, 32), 50).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:300])
    with pytest.raises(UserError, match=r"cut.png: expected an image, could not read it"):
        read_folder(tmp_path, 32)


@real
def test_cifar10_has_the_splits_of_the_paper(cifar10):
    check(cifar10)
    assert [len(getattr(cifar10, name)) for name in SPLITS[:-1]] == [25000, 25000, 5000, 5000]
    assert cifar10.shape == (3, 32, 32)
    assert len(cifar10.transfer) >= 20000
    few = Cifar10(str(REAL), transfer=10).load().transfer
    assert torch.equal(few.x, cifar10.transfer.x[:: len(cifar10.transfer) // 10])
    for name, each in (("a", 2500), ("b", 2500), ("finetune", 500), ("test", 500)):
        assert getattr(cifar10, name).y.bincount().tolist() == [each] * 10


@real
def test_cifar10_splits_cover_the_set(cifar10):
    from fingerbench.vision import torchvision

    whole = torchvision.datasets.CIFAR10(str(REAL)).data.transpose(0, 3, 1, 2)
    parts = torch.cat([cifar10.a.x, cifar10.b.x]).numpy()
    assert sorted(hash(row.tobytes()) for row in parts) == sorted(hash(row.tobytes()) for row in whole)


@real
def test_missing_transfer_images_say_what_to_do(tmp_path):
    (tmp_path / "cifar-10-batches-py").symlink_to(REAL.resolve() / "cifar-10-batches-py")
    for transfer_root in (None, str(tmp_path / "none")):
        with pytest.raises(UserError, match=r"found neither; set data.download=true, or data.transfer_root=DIR"):
            Cifar10(str(tmp_path), transfer_root).load()


@pytest.mark.parametrize("kind", [Digits, Cifar10, ImageFolder])
def test_configured_data_matches_its_class(kind):
    node = OmegaConf.load(CONF / f"{kind.__name__.lower()}.yaml")
    assert node._target_ == f"{kind.__module__}.{kind.__name__}"
    kind(**{key: value for key, value in node.items() if key not in ("_target_", *config.RESERVED)})
    constants = node.constants
    assert constants.pgd_step == pytest.approx(constants.pgd_eps / 4, rel=1e-4)
    assert Augment(**constants.augment).identity == (node.name == "digits")
