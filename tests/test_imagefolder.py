"""A user's own images: layouts, splits, errors, and a whole run on them."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run
from PIL import Image

import fingerbench as fb
from fingerbench.data import SPLITS, check
from fingerbench.data.imagefolder import ImageFolder
from fingerbench.errors import UserError

COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 30), "red": (220, 30, 40)}


def save(folder, counts, size=(20, 20)):
    """Write noisy images of a colour for each class; `counts` maps a class to how many."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = generator.integers(-20, 20, (*size, 3))
            pixels = (np.array(COLOURS.get(name, (9, 9, 9))) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_one_folder_is_split_like_fingerbench(tmp_path):
    root = save(tmp_path / "images", {"red": 36, "blue": 24, "green": 12})
    transfer = save(tmp_path / "other", {"any": 5})
    data = ImageFolder(str(root), 16, str(transfer)).load()
    check(data)
    assert [len(getattr(data, part)) for part in SPLITS] == [30, 30, 6, 6, 5]
    assert data.shape == (3, 16, 16) and data.task.classes == 3
    counts = [getattr(data, part).y.bincount().tolist() for part in SPLITS[:-1]]
    assert counts == [[10, 5, 15], [10, 5, 15], [2, 1, 3], [2, 1, 3]], "blue, green, red: in the order of the names"
    whole = torch.cat([getattr(data, part).x for part in SPLITS[:-1]])
    assert len(whole.flatten(1).unique(dim=0)) == 72, "disjoint, and nothing lost"
    for part in SPLITS[:-1]:
        images = getattr(data, part)
        brightest = images.x.float().mean((2, 3)).argmax(1)  # 0: red, 1: green, 2: blue
        assert torch.equal(brightest, 2 - images.y)
    assert data.transfer.y.unique().tolist() == [0]


def test_train_and_test_folders_are_halved_each(tmp_path):
    save(tmp_path / "train", {"red": 8, "blue": 10})
    save(tmp_path / "test", {"red": 4, "blue": 2}, size=(7, 30))
    data = ImageFolder(str(tmp_path)).load()
    check(data)
    assert [len(getattr(data, part)) for part in SPLITS[:-1]] == [9, 9, 3, 3] and data.transfer is None
    assert data.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"red": 30}, "expected a folder of images for each of 2 or more classes; found the only folder 'red'"),
        ({}, "or more classes; found no folder in it"),
        ({"red": 30, "blue": 11}, "blue: expected 12 or more images, .* found 11; add images or remove the folder"),
        ({"red": 30, "blue": 0}, "blue: expected 12 or more images, .* found 0"),
        ({"train/red": 9, "val/red": 9}, "expected train and test, or a folder for each class; found train, val"),
        (
            {"train/red": 9, "train/blue": 9, "train/green": 9, "test/red": 9, "test/green": 9},
            "the same classes in train and test; got 'blue in one of them'",
        ),
        ({"train/red": 9, "train/blue": 9, "test/red": 9, "test/blue": 1}, "blue: expected 2 or more images"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_in_one_line(tmp_path, counts, message):
    save(tmp_path, counts)
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_a_damaged_image_is_named(tmp_path):
    save(tmp_path, {"red": 12, "blue": 12})
    (tmp_path / "red" / "3.png").write_bytes((tmp_path / "red" / "4.png").read_bytes()[:100])
    with pytest.raises(UserError, match=r"3\.png: expected an image, could not read it"):
        ImageFolder(str(tmp_path)).load()


@pytest.mark.parametrize("wrong", [{"root": None}, {"root": "missing"}, {"size": 8}, {"held": 1.0}])
def test_impossible_settings_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=rf"data\.{name}: expected"):
        ImageFolder(**{"root": "missing", **wrong}).load()


def test_a_run_on_images_and_a_network_of_ones_own(tmp_path):
    root = save(tmp_path / "images", dict.fromkeys(COLOURS, 40))
    words = ["data=imagefolder", f"data.root={root}", "data.size=16", "data.constants.augment.pad=2", "jobs=1"]
    words += ["zoo.architectures=[timm:test_vit,resnet18]", "method=random", "zoo.training.epochs=2"]
    words += ["zoo.tuning.epochs=1", "queries=10"]
    families = "source,finetune,prune,noise,adversarial,distill,scratch,scratch-distill"
    told = "attack=knockoff: expected a data set with transfer images, such as from data.tr"
    with pytest.raises(UserError, match=told) as caught:
        fb.open(*words).plan()
    assert f"or attack=[{families}]; got 'imagefolder without any'" in str(caught.value)
    run(tmp_path / "store", tmp_path / "run", *words, "attack=[source,distill,scratch]", tiny=False)
    scores = pd.read_csv(tmp_path / "run" / "scores.csv").set_index("suspect")
    assert scores.score["source"] == 1 and scores.arch["distill/timm:test_vit"] == "timm:test_vit"
    assert list(scores.index) == [
        *("source", "mirror/source", "distill/timm:test_vit", "distill/resnet18"),
        *("mirror/distill/timm:test_vit", "mirror/distill/resnet18", "scratch/timm:test_vit"),
    ]
