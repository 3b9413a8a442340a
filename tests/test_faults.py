"""What clusters do to a suite: every fault is injected for real, and counted in a ledger that is printed at the end.

Outside CI: `make test-faults` injects many, and prints the ledger as a table. Survived: the same command went on to the
very scores of an undisturbed run, or the fault was refused in one line and nothing lost. Lost: artefacts that were
finished before the fault and are not there, or not sound, after it.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import TINY, finish, start, told
from PIL import Image

from fingerbench.store import PAYLOAD, RECORD

pytestmark = pytest.mark.faults

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
SMALL = [*TINY, "method=random", "attack=[source,noise]", "zoo.training.epochs=2"]


def words(store, folder):
    return [*SMALL, f"store={store}", f"hydra.run.dir={folder}"]


def inventory(store):
    """Return the sha256 of every artefact that a reader would see; each must be whole."""
    found = {}
    for path in sorted(Path(store).glob(f"*/*/{RECORD}")):
        if path.parts[-3] in ("drafts", "damaged"):
            continue
        payload = (path.parent / PAYLOAD).read_bytes()
        found[path.parent.name] = hashlib.sha256(payload).hexdigest()
        assert json.loads(path.read_bytes())["sha256"] == found[path.parent.name], f"half-written: {path}"
    return found


def lost(before, store):
    """Return how many of the artefacts `before` are not in the store as they were."""
    after = inventory(store)
    return sum(after.get(key) != sha256 for key, sha256 in before.items())


def scores(folder):
    return (folder / "scores.csv").read_bytes()


def descendants(pid):
    """Return the process and all that it started, itself first."""
    found = [pid]
    for known in found:
        for path in Path(f"/proc/{known}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
    return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def artefacts(store):
    return len(list(Path(store).glob(f"model/*/{RECORD}")))


def await_artefacts(store, count, process):
    deadline = time.monotonic() + 300
    while artefacts(store) < count and process.poll() is None:
        assert time.monotonic() < deadline, f"{artefacts(store)} of {count} artefacts after 300 s"
        time.sleep(0.02)


@contextmanager
def disk(folder, size):
    """Mount an empty file system of this size on `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that nothing disturbed, and the scores of its run."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(["run.py"], *words(folder / "store", folder / "run")))
    return folder / "store", scores(folder / "run")


def test_kills_at_any_moment_lose_nothing_finished(whole, tmp_path, faults, ledger):
    """kill -9 of the run, or of one of its workers, drawn at random; the same command goes on, again and again."""
    chance = random.Random(0)
    kills = gone = number = 0
    while kills < faults:
        store = tmp_path / f"store-{number}"
        while True:
            process = start(["run.py"], *words(store, tmp_path / f"run-{number}"), start_new_session=True)
            await_artefacts(store, artefacts(store) + chance.randint(0, 6), process)
            time.sleep(chance.uniform(0, 0.3))
            before = inventory(store)
            family = descendants(process.pid)
            worker = len(family) > 1 and chance.random() < 0.3
            killed = kills < faults and process.poll() is None
            if killed:
                kills += kill(chance.choice(family[1:]) if worker else process.pid)
            output = told(process)
            gone += lost(before, store)
            if process.returncode == 0:
                break
            assert killed and process.returncode == -signal.SIGKILL, output
        assert scores(tmp_path / f"run-{number}") == whole[1]
        assert not (store / "damaged").exists()
        number += 1
    ledger(f"kill -9 of a run or a worker, {number} zoos", kills, kills, gone)
    assert gone == 0


def test_a_terminated_run_ends_at_once_and_goes_on(whole, tmp_path, faults, ledger):
    """SIGTERM, as a scheduler sends it before it requeues."""
    store, rounds, gone = tmp_path / "store", max(1, faults // 10), 0
    for _ in range(rounds):
        process = start(["run.py"], *words(store, tmp_path / "run"), start_new_session=True)
        await_artefacts(store, artefacts(store) + 2, process)
        before = inventory(store)
        os.killpg(process.pid, signal.SIGTERM)  # the workers get it as well
        output = told(process, 60)
        assert process.returncode == 143 and "the same command goes on where it was" in output, output
        assert "Traceback" not in output and "died" not in output
        assert descendants(process.pid) == [process.pid]
        gone += lost(before, store)
    finish(start(["run.py"], *words(store, tmp_path / "run")))
    ledger("SIGTERM, then the same command", rounds, rounds, gone)
    assert scores(tmp_path / "run") == whole[1] and gone == 0


@ROOT_ONLY
def test_a_full_disk_is_told_and_what_is_finished_stays(whole, tmp_path, ledger):
    place = tmp_path / "disk"
    with disk(place, "2m"):
        output = finish(start(["run.py"], *words(place / "store", tmp_path / "run")), 2)
        before = inventory(place / "store")
        assert "No space left on device" in output and "store=DIR" in output and "Traceback" not in output
        assert before and not list((place / "store" / "drafts").iterdir())
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        finish(start(["run.py"], *words(place / "store", tmp_path / "run")))
        gone = lost(before, place / "store")
    ledger("full disk (2 MiB), then room", 1, 1, gone)
    assert scores(tmp_path / "run") == whole[1] and gone == 0


@ROOT_ONLY
def test_a_read_only_store_is_read_and_never_written(whole, tmp_path, ledger):
    place = tmp_path / "disk"
    with disk(place, "64m"):
        shutil.copytree(whole[0], place / "store")
        shutil.rmtree(next(iter((place / "store" / "response").iterdir())))
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        before = inventory(place / "store")
        output = finish(start(["run.py"], *words(place / "store", tmp_path / "refused")), 2)
        assert "Read-only file system" in output and "store=DIR" in output and "Traceback" not in output
        finish(start(["run.py"], *words(place / "store", tmp_path / "run"), "attack=[source]"))
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        finish(start(["run.py"], *words(place / "store", tmp_path / "run")))
        gone = lost(before, place / "store")
    ledger("read-only store: something to make, nothing to make", 2, 2, gone)
    assert scores(tmp_path / "run") == whole[1] and gone == 0


def test_truncated_and_flipped_files_are_named_and_made_again(whole, tmp_path, faults, ledger):
    chance = random.Random(1)
    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    sound = inventory(store)
    victims = chance.sample(sorted(store.glob("model/*")) + sorted(store.glob("response/*")), min(faults * 2, 30))
    for number, victim in enumerate(victims):
        path = victim / (PAYLOAD if number % 2 else RECORD)
        content = bytearray(path.read_bytes())
        if number % 4 < 2:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        else:
            del content[chance.randrange(len(content)) :]
        path.write_bytes(bytes(content))
    output = finish(start(["run.py"], *words(store, tmp_path / "run")))
    named = sum(str(victim) in output for victim in victims)
    ledger("truncated and bit-flipped safetensors and JSON", len(victims), named, lost(sound, store))
    assert named == len(victims) and lost(sound, store) == 0, "made again to the bit"
    assert scores(tmp_path / "run") == whole[1]


def test_many_workers_on_one_store_end_as_one_run_does(whole, tmp_path, ledger):
    """Four runs with two workers each, started together."""
    store = tmp_path / "store"
    processes = [start(["run.py"], *words(store, tmp_path / f"run-{n}")) for n in range(4)]
    for process in processes:
        finish(process)
    assert {scores(tmp_path / f"run-{n}") for n in range(4)} == {whole[1]}
    assert inventory(store).keys() == inventory(whole[0]).keys()
    ledger("8 workers on one store", 8, 8, 0)


# A host in the future: what it reads off its clock, and what it writes as the times of files.
AHEAD = """
import os, time
now, now_ns, utime = time.time, time.time_ns, os.utime
time.time = lambda: now() + 3600
time.time_ns = lambda: now_ns() + 3600 * 10**9
def ahead(path, times=None, **options):
    if times is None and "ns" not in options:
        times = (time.time(), time.time())
    return utime(path, times, **options) if times else utime(path, **options)
os.utime = ahead
"""


def test_clocks_an_hour_apart_take_nobodys_lease(whole, tmp_path, ledger):
    """Two runs with locks=lease; one of them lives an hour in the future."""
    store = tmp_path / "store"
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead" / "sitecustomize.py").write_text(AHEAD)
    settings = [*words(store, tmp_path / "a"), "locks=lease"]
    here = start(["run.py"], *settings)
    ahead = {"PYTHONPATH": f"{Path.cwd()}:{tmp_path / 'ahead'}"}
    there = start(["run.py"], *settings, f"hydra.run.dir={tmp_path / 'b'}", environment=ahead)
    outputs = [finish(here), finish(there)]
    assert scores(tmp_path / "a") == scores(tmp_path / "b") == whole[1]
    assert not any("died" in output or "damaged" in output for output in outputs)
    ledger("clocks an hour apart, leases", 1, 1, lost(inventory(whole[0]), store))


def test_a_stale_lease_is_taken_over(whole, tmp_path, ledger):
    """A lock file of a host that is gone: no process is left to ask about it."""
    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    victim = next(iter(sorted((store / "response").iterdir())))
    shutil.rmtree(victim)
    code = (
        "import sys; from filelock import SoftFileLease; import platform;"
        "platform.node = lambda: 'gone'; import socket; socket.gethostname = lambda: 'gone';"
        "lock = SoftFileLease(sys.argv[1], lease_duration=60); lock.acquire(); import os; os._exit(1)"
    )
    (store / "locks").mkdir(exist_ok=True)
    lock = store / "locks" / f"{victim.name}.lease"
    finish(start(["-c", code], str(lock)), 1)
    assert lock.exists()
    began = time.monotonic()
    finish(start(["run.py"], *words(store, tmp_path / "run"), "locks=lease"))
    assert scores(tmp_path / "run") == whole[1] and victim.is_dir()
    ledger(f"lease of a dead host, taken after {time.monotonic() - began:.0f} s", 1, 1, 0)


def test_a_training_that_diverges_is_named_and_never_stored(whole, tmp_path, ledger):
    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    before = inventory(store)
    broken = "zoo.tuning.lr=1e30"
    output = finish(start(["run.py"], *words(store, tmp_path / "run"), broken), 1)
    assert "noise/1 diverged: loss nan" in output or "noise/1 diverged: loss inf" in output
    assert "begun once more in float32, learning rates times 0.1" in output
    assert "lower the lr of its recipe" in output and "failed as well: " in output and "Traceback" not in output
    assert inventory(store) == before
    named = output.count("; the others go on")
    assert named == 18  # nine variants, and as many mirrors
    ledger(f"loss that is not finite: {named} models, each tried twice", named, named, lost(before, store))


HUNGRY = """
from dataclasses import dataclass
import torch
from methods.random import RandomImages

@dataclass(frozen=True)
class Hungry(RandomImages):
    def fingerprint(self, setting):
        torch.empty(10**14)
"""


def test_a_worker_out_of_memory_ends_the_run_in_one_line(whole, tmp_path, ledger):
    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    before = inventory(store)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "hungry.py").write_text(HUNGRY)
    (tmp_path / "conf" / "method" / "hungry.yaml").write_text("name: hungry\n_target_: hungry.Hungry\n")
    searchpath = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    own = {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    settings = [*words(store, tmp_path / "run"), searchpath, "method=hungry"]
    output = finish(start(["run.py"], *settings, environment=own), 2)
    assert "a worker died (out of memory, or killed) while making" in output and "fewer jobs=" in output
    assert "tried once more" in output and "Traceback" not in output
    ledger("worker out of memory, twice over the same", 2, 2, lost(before, store))
    assert inventory(store) == before


def test_a_changed_data_set_is_refused(tmp_path, ledger):
    images, store = tmp_path / "images", tmp_path / "store"
    chance = random.Random(2)
    for name, colour in (("blue", (20, 40, 200)), ("red", (220, 30, 40))):
        (images / name).mkdir(parents=True)
        for number in range(24):
            pixels = [tuple(min(255, c + chance.randrange(30)) for c in colour) for _ in range(256)]
            image = Image.new("RGB", (16, 16))
            image.putdata(pixels)
            image.save(images / name / f"{number}.png")
    own = [
        "data=imagefolder",
        f"data.root={images}",
        "data.size=16",
        "attack=[source]",
        "gates.action=off",
        "queries=2",
    ]
    settings = [word for word in words(store, tmp_path / "run") if not word.startswith("data.")]
    finish(start(["run.py"], *settings, *own))
    before = inventory(store)
    victim = images / "red" / "0.png"
    sound = victim.read_bytes()
    victim.write_bytes((images / "blue" / "0.png").read_bytes())
    output = finish(start(["run.py"], *settings, *own), 2)
    assert "its files changed since the store" in output and "store=DIR" in output and "Traceback" not in output
    assert inventory(store) == before
    victim.write_bytes(sound)
    assert "nothing to make" in finish(start(["run.py"], *settings, *own))
    ledger("data set changed under a built zoo", 1, 1, lost(before, store))
