"""A killed training goes on from its checkpoint, to the same weights as one that was not killed."""

from __future__ import annotations

import dataclasses
import errno
import shutil

import pytest
import torch
from conftest import KilledError, same_weights
from torch import nn

import fingerbench as fb
from fingerbench import checkpoint
from fingerbench.checkpoint import Checkpoint
from fingerbench.data.augment import Augment
from fingerbench.errors import UserError
from fingerbench.records import Images
from fingerbench.task import Classification
from fingerbench.zoo import train
from fingerbench.zoo.train import Recipe, Workbench, fit, supervise

SCHEDULES = {"steps": {"milestones": (0.4, 0.7)}, "cosine": {}, "onecycle": {}}


def recipe(schedule="cosine"):
    return Recipe(3, 13, 0.05, 0.9, 5e-4, schedule, **SCHEDULES[schedule])


def images():
    x = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Images(x, torch.arange(40) % 3)


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
    return nn.Sequential(*layers)


def workbench(file=None, task=Classification(3)):  # noqa: B008
    random = torch.Generator().manual_seed(2)
    return Workbench(torch.device("cpu"), False, Augment(1, True), random, task, checkpoint=Checkpoint(file))


class Counting(Classification):
    """Counts the steps, and dies before one of them."""

    def __init__(self, death=None):
        super().__init__(3)
        self.__dict__.update(death=death, steps=0)

    def loss(self, outputs, y):
        if self.steps == self.death:
            raise KilledError
        self.__dict__["steps"] += 1
        return super().loss(outputs, y)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("death", [1, 4, 6])  # of 9 steps, 3 an epoch
def test_a_killed_training_goes_on_to_the_same_model(schedule, death, tmp_path, monkeypatch):
    undisturbed = workbench()
    whole = supervise(network(), images(), recipe(schedule), undisturbed)
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    file = tmp_path / "some" / "key.pt"
    with pytest.raises(KilledError):
        supervise(network(), images(), recipe(schedule), workbench(file, Counting(death)))
    task = Counting()
    torch.rand(7)  # whatever was drawn meanwhile
    bench = workbench(file, task)
    resumed = supervise(network(), images(), recipe(schedule), bench)
    assert task.steps == 9 - death
    assert same_weights(resumed, whole)
    assert bench.losses == undisturbed.losses and len(bench.losses) == 3
    assert [path.name for path in file.parent.iterdir()] == ["key.pt"]


def test_a_short_training_writes_none(tmp_path):
    supervise(network(), images(), recipe(), workbench(tmp_path / "key.pt"))
    assert not list(tmp_path.iterdir())


def test_only_the_first_training_of_a_model_has_one(tmp_path, monkeypatch):
    def both(file):
        bench = workbench(file)
        return supervise(supervise(network(), images(), recipe(), bench), images(), recipe("steps"), bench)

    whole = both(None)
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    both(tmp_path / "key.pt")
    assert torch.load(tmp_path / "key.pt", weights_only=True)["step"] == 9
    assert same_weights(both(tmp_path / "key.pt"), whole)


def test_a_model_of_the_store_goes_on_and_counts_what_it_took_before(tmp_path, monkeypatch):
    words = ("data=digits", "zoo.architectures=[resnet18]", "zoo.width=0.0625", "zoo.training.epochs=2")
    benches = [fb.open(*words, f"store={tmp_path / name}") for name in ("whole", "killed")]
    spec = benches[0].zoo.original()
    whole, _ = spec.make(benches[0].workshop)
    workshop = benches[1].workshop
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    close = train._Epoch.close
    with monkeypatch.context() as patch:
        patch.setattr(train._Epoch, "close", lambda self: 1 / 0 if self.workbench.losses else close(self))
        with pytest.raises(ZeroDivisionError):
            spec.make(workshop)
    file = workshop.store.checkpoint(spec)
    content = torch.load(file, weights_only=True)
    torch.save(content | {"seconds": 1000.0}, file)
    tensors, facts = spec.make(workshop)
    assert same_weights(tensors, whole)
    assert facts["seconds"] > 1000 and len(facts["losses"]) == 2
    workshop.store.save(spec, tensors, facts)
    assert not file.exists()


def test_a_theft_from_another_source_than_before_is_begun_anew(tmp_path, monkeypatch):
    words = ["data=digits", "zoo.architectures=[resnet18]", "zoo.width=0.0625", "zoo.tuning.epochs=1"]
    bench = fb.open(*words, "attack=finetune", "attack.finetune.variants=[FTAL]", f"store={tmp_path}")
    spec, workshop = bench.models["finetune/FTAL"], bench.workshop

    def steal(seed):
        torch.manual_seed(seed)
        shutil.rmtree(workshop.store.path(spec.parent), ignore_errors=True)
        workshop.store.save(spec.parent, spec.parent.network(bench.data.shape).state_dict(), {})
        return spec.make(workshop)[0]

    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train._Epoch, "close", lambda _: 1 / 0)
        steal(1)
    assert workshop.store.checkpoint(spec).exists()
    resumed = steal(2)
    workshop.store.checkpoint(spec).unlink()
    assert same_weights(resumed, steal(2))


class Follows(nn.Module):
    """A loss with a memory of its own: the distance to the mean of all outputs so far."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, outputs, _x, _index):
        self.mean.lerp_(outputs.detach().mean(0), 0.5)
        return (outputs - self.mean).square().mean()


def test_what_a_loss_keeps_goes_on_if_it_is_named(tmp_path, monkeypatch):
    def followed(file, named, death=None):
        loss, bench, steps = Follows(), workbench(file), []

        def mortal(*args):
            if len(steps) == death:
                raise KilledError
            steps.append(1)
            return loss(*args)

        kept = {"loss": loss} if named else None
        return fit(network(), images().x, mortal, recipe(), bench, kept=kept)

    whole = followed(None, False)
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    for named in (True, False):
        file = tmp_path / f"{named}.pt"
        with pytest.raises(KilledError):
            followed(file, named, death=4)
        assert same_weights(followed(file, named), whole) == named


@dataclasses.dataclass
class Kept:
    """One weight with a checkpoint of its own."""

    file: object

    def __post_init__(self):
        self.parts = {"net": nn.Linear(50, 50)}
        self.random = torch.Generator().manual_seed(3)

    def write(self, step=1):
        Checkpoint(self.file).write(step, self.parts, self.random)

    def resume(self):
        return Checkpoint(self.file).resume(self.parts, self.random)


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path / "key.pt")


def test_no_file_is_the_beginning(kept):
    assert kept.resume() == 0 and Checkpoint().resume(kept.parts, kept.random) == 0 and not Checkpoint().due()


def test_what_was_begun_from_other_parents_is_begun_anew(kept, caplog):
    def resume(parents):
        return Checkpoint(kept.file, parents).resume(kept.parts, kept.random)

    kept.write(2)
    content = torch.load(kept.file)
    del content["parents"]  # a file of before they were told
    torch.save(content, kept.file)
    assert resume({"source": "1"}) == 2
    Checkpoint(kept.file, {"source": "1"}).write(3, kept.parts, kept.random)
    assert resume({"source": "1"}) == 3
    assert resume({"source": "2"}) == 0 and not kept.file.exists() and "begun anew" in caplog.text


def test_seconds_add_up_over_processes(kept, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    for process in range(2):
        one = Checkpoint(kept.file)
        one.resume(kept.parts, kept.random)
        clock[0] += 100
        assert one.seconds == 100 * process and not one.due()
        one.write(process, kept.parts, kept.random)
    clock[0] += checkpoint.EVERY_S
    assert one.due()


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(kept, monkeypatch):
    kept.write()
    monkeypatch.setattr(checkpoint.torch, "save", lambda content, file: file.write(b"more than fits"))

    def full(path, content):
        path.write_bytes(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(UserError, match=r"cannot write to .*No space left on device; nothing finished is lost"):
        kept.write(2)
    assert [path.name for path in kept.file.parent.iterdir()] == ["key.pt"] and kept.resume() == 1


def test_a_checkpoint_that_cannot_be_read_is_not_told_to_be_deleted(kept, monkeypatch):
    kept.write()

    def lost(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", lost)
    with pytest.raises(UserError, match=r"cannot read .*Input/output error; run the same command again$"):
        kept.resume()


def test_a_broken_checkpoint_is_named(kept):
    kept.file.write_bytes(b"rubbish")
    with pytest.raises(UserError, match=f"{kept.file}.*delete it to start over"):
        kept.resume()


def test_a_flipped_bit_in_a_checkpoint_is_found(kept):
    kept.write()
    content, weight = bytearray(kept.file.read_bytes()), kept.parts["net"].weight.detach()
    content[content.index(weight.numpy().tobytes()) + 2] ^= 1
    kept.file.write_bytes(content)
    torch.load(kept.file, weights_only=True)  # PyTorch itself does not notice
    with pytest.raises(UserError, match="does not match its checksum; or delete it to start over"):
        kept.resume()


@pytest.mark.parametrize("schema", [0, 2])
def test_a_checkpoint_of_another_schema_is_refused(kept, schema):
    torch.save({"schema": schema}, kept.file)
    with pytest.raises(UserError, match=f"schema {schema}, this version reads 1.*delete it to start over"):
        kept.resume()
