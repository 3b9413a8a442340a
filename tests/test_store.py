"""The store: keys, atomic publication, damage found and set aside, locks."""

import errno
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from fingerbench.errors import DamagedError, UserError, writing
from fingerbench.store import PAYLOAD, RECORD, Spec, Store, Stored, key_of


@dataclass(frozen=True)
class Toy(Spec):
    kind: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    lr: float
    name: str = field(default="", compare=False)
    parent: "Toy | None" = None
    others: tuple["Toy", ...] = ()


@dataclass(frozen=True)
class Job(Spec):
    kind: ClassVar[str] = "job"
    version: ClassVar[int] = 1
    method: object


TENSORS = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_float_written_as_an_integer_gives_the_same_key():
    assert Toy(lr=1).key == Toy(lr=1.0).key != Toy(lr=2.0).key


def test_a_name_is_no_part_of_the_key_and_a_parent_is():
    assert Toy(1.0, name="a").key == Toy(1.0, name="b").key
    assert Toy(1.0, parent=Toy(2.0)).key != Toy(1.0, parent=Toy(3.0)).key != Toy(1.0).key


def test_who_changes_a_method_raises_its_version():
    @dataclass(frozen=True)
    class Method:
        steps: int = 1

    def key():
        return key_of(Job(Method()).identity())

    plain = key()
    assert "version" not in Job(Method()).identity()["method"]
    Method.version = 1
    assert key() != plain and key() == key()
    Method.version = 2
    assert len({plain, key(), key_of({**Job(Method()).identity(), "version": 9})}) == 3


def test_needs_are_found_in_fields_and_tuples():
    a, b = Toy(2.0), Toy(3.0)
    assert Toy(1.0, parent=a, others=(b,)).needs() == (a, b)


def test_what_is_saved_comes_back(store):
    spec = Toy(1.0)
    assert not store.has(spec)
    with pytest.raises(KeyError):
        store.load(spec)
    store.save(spec, TENSORS, {"accuracy": 0.5})
    artefact = store.load(spec)
    assert store.has(spec) and artefact.facts == store.facts(spec) == {"accuracy": 0.5}
    assert artefact.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(artefact.tensors[k], t) for k, t in TENSORS.items())
    assert store.verify(spec) is None
    assert not any((store.root / "drafts").iterdir())


def test_saving_twice_keeps_the_first(store):
    store.save(Toy(1.0), TENSORS, {"n": 1})
    store.save(Toy(1.0), TENSORS, {"n": 2})
    assert store.facts(Toy(1.0)) == {"n": 1}


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def damage_remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (damage_truncate, PAYLOAD),
        (damage_flip, PAYLOAD),
        (damage_remove, PAYLOAD),
        (damage_truncate, RECORD),
        (damage_flip, RECORD),
    ],
)
def test_damage_is_named_and_set_aside(store, damage, file):
    spec = Toy(1.0)
    store.save(spec, TENSORS, {"accuracy": 0.5})
    damage(store.path(spec) / file)
    with pytest.raises(DamagedError, match=str(store.path(spec))):
        store.load(spec)
    trouble = store.verify(spec)
    assert trouble is not None and file in trouble and "set aside" in trouble
    assert not store.has(spec)
    assert len(list((store.root / "damaged").iterdir())) == 1
    store.save(spec, TENSORS, {})
    assert store.verify(spec) is None


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_a_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def replace_by_another(path):
    path.write_bytes((path.parents[1] / Toy(2.0).key / path.name).read_bytes())


def nest_deeply(path):
    path.write_bytes(b'{"record_sha256":' + b"[" * 100_000)


@pytest.mark.parametrize("damage", [replace_by_a_folder, replace_by_a_loop, replace_by_another, nest_deeply])
@pytest.mark.parametrize("file", [PAYLOAD, RECORD])
def test_what_is_something_else_is_named_and_rebuilt(store, damage, file):
    spec = Toy(1.0)
    store.save(spec, TENSORS, {})
    store.save(Toy(2.0), {"w": torch.zeros(2, 3), "n": torch.tensor(4)}, {})
    damage(store.path(spec) / file)
    for read in (store.load, store.facts) if file == RECORD else (store.load,):
        with pytest.raises(DamagedError, match=str(store.path(spec) / file)):
            read(spec)
    trouble = store.verify(spec)
    assert trouble is not None and "set aside" in trouble
    store.save(spec, TENSORS, {})
    assert store.verify(spec) is None and store.has(spec)


def test_what_was_made_of_another_parent_is_stale(store):
    parent = Toy(2.0, name="parent")
    child, cousin = Toy(1.0, parent=parent), Toy(3.0, others=(parent,))
    store.save(child, TENSORS, {})  # before its parent was there
    store.save(parent, TENSORS, {"seconds": 1})
    store.save(cousin, TENSORS, {})
    store.path(parent).rename(store.root / "gone")
    assert store.verify(cousin) is None, "a parent that is gone says nothing"
    store.save(parent, TENSORS, {"seconds": 2})
    assert store.verify(cousin) is None and store.current(cousin), "the same bytes again"
    store.path(parent).rename(store.root / "gone as well")
    store.save(parent, {"w": torch.zeros(2)}, {})
    assert store.verify(child) is None and store.current(child)
    assert store.has(cousin) and not store.current(cousin)
    told = store.verify(cousin)
    assert f"made of another {parent.label} than the store has now; set aside in" in told and not store.has(cousin)


def test_what_was_made_of_a_parent_as_it_was_loaded_is_stale_once_that_is_another(store):
    parent = Toy(2.0, name="parent")
    child = Toy(1.0, parent=parent)
    store.save(parent, TENSORS, {})
    store.load(parent)
    other = Store(store.root)  # of another process, which finds it damaged and makes it again meanwhile
    store.path(parent).rename(store.root / "gone")
    other.save(parent, {"w": torch.zeros(2)}, {})
    store.save(child, TENSORS, {})
    assert "made of another" in (other.verify(child) or "")
    store.load(parent)
    store.save(child, TENSORS, {})
    assert other.verify(child) is None


def test_a_folder_that_lost_its_record_does_not_keep_the_artefact_out(store):
    spec = Toy(1.0)
    store.save(spec, TENSORS, {})
    (store.path(spec) / RECORD).unlink()
    assert not store.has(spec)
    store.save(spec, TENSORS, {"n": 2})
    assert store.load(spec).facts == {"n": 2}
    store.path(Toy(3.0)).write_bytes(b"no folder")
    store.save(Toy(3.0), TENSORS, {"n": 3})
    assert store.load(Toy(3.0)).facts == {"n": 3}
    assert len(list((store.root / "damaged").iterdir())) == 2


def test_a_file_that_may_not_be_read_is_not_set_aside(store, monkeypatch):
    store.save(Toy(1.0), TENSORS, {})

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="Permission denied; grant access"):
        store.verify(Toy(1.0))
    assert store.has(Toy(1.0))


def test_every_flipped_bit_of_a_record_is_found(store):
    spec = Toy(1.0)
    store.save(spec, {"w": torch.zeros(1)}, {"x": 1})
    path = store.path(spec) / RECORD
    sound = path.read_bytes()
    for position in range(0, len(sound), 7):
        broken = bytearray(sound)
        broken[position] ^= 1
        path.write_bytes(bytes(broken))
        try:
            same = json.loads(bytes(broken)) == json.loads(sound)  # a flip in white space changes nothing
        except ValueError:
            same = False
        if not same:
            with pytest.raises(DamagedError):
                store.load(spec)


def test_a_claim_is_exclusive_between_processes(store):
    spec = Toy(1.0)
    code = (
        "import sys, filelock\n"
        f"lock = filelock.FileLock({str(store.root / 'locks' / (spec.key + '.lock'))!r})\n"
        "lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    (store.root / "locks").mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with store.claim(spec) as mine:
            assert not mine
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with store.claim(spec) as mine:
        assert mine


HOLD = """
import os, sys
from fingerbench.store import Store
from test_store import Toy
with Store(sys.argv[1], "lease", 1.0).claim(Toy(1.0)) as mine:
    print("held" if mine else "not held", flush=True)
    sys.stdin.read()
"""


def test_a_lease_is_renewed_by_its_holder_and_taken_from_a_dead_one(store):
    spec, store = Toy(1.0), Store(store.root, "lease", 1.0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, store.root], **pipes, cwd=Path(__file__).parent)
    try:
        assert holder.stdout.readline().strip() == "held"
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            with store.claim(spec) as mine:
                assert not mine, "for three times as long as it lasts unless renewed"
            time.sleep(0.2)
    finally:
        holder.send_signal(signal.SIGSTOP)  # as good as gone, and its process is still there
        for _ in range(100):
            with store.claim(spec) as mine:
                pass
            if mine:
                break
            time.sleep(0.1)
        holder.kill()
        holder.communicate()
    assert mine


def test_a_file_system_without_flock_is_told_with_the_way_out(store, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.raises(UserError, match="use locks=lease"), store.claim(Toy(1.0)):
        pass
    with Store(store.root, "lease").claim(Toy(1.0)) as mine:
        assert mine


def test_unknown_locks_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'flock'"):
        Store(tmp_path, "flok")


def test_a_changed_data_set_is_refused_and_another_is_not(store):
    store.remember("digits", {"size": 16}, "aa")
    store.remember("digits", {"size": 16}, "aa")
    store.remember("digits", {"size": 8}, "bb")
    with pytest.raises(UserError, match=r"expected sha256 aa, got bb; restore them, or .*store=DIR"):
        store.remember("digits", {"size": 16}, "bb")
    for place in (store.root / "data").iterdir():
        place.write_text("{")
    with pytest.raises(UserError, match="damaged; delete it"):
        store.remember("digits", {"size": 16}, "aa")


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="store=DIR"):
        Store(tmp_path / "file" / "store").save(Toy(1.0), TENSORS, {})


@pytest.mark.parametrize("root", ["/proc/nope", "/proc/nope/store"])
def test_a_store_where_no_folder_can_be_made_says_so(root):
    with pytest.raises(UserError, match=r"cannot write to /proc/nope: No such file .* with store=DIR"):
        Store(root).remember("digits", {}, "0")


def test_a_file_that_is_missing_elsewhere_is_no_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "store", "store"):
        (tmp_path / "images" / "0.png").read_bytes()


def test_places_are_told_apart():
    one, two, kin = Stored("model", "1" * 64), Stored("model", "2" * 64), Stored("gan", "1" * 64)
    assert one == Stored("model", "1" * 64) and len({one, two, kin, Stored("gan", "1" * 64)}) == 3


def test_a_store_of_another_schema_is_recognised(store, monkeypatch):
    monkeypatch.setattr("fingerbench.store.SCHEMA", 99)
    store.save(Toy(1.0), TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="schema 99"):
        store.load(Toy(1.0))


def test_a_stored_artefact_leaves_no_checkpoint(tmp_path):
    store = Store(tmp_path)
    file = store.checkpoint(Toy(1.0))
    file.parent.mkdir()
    file.write_bytes(b"half")
    other = store.checkpoint(Toy(2.0))
    other.write_bytes(b"half")
    store.save(Toy(1.0), TENSORS, {})
    assert not file.exists() and other.exists()
