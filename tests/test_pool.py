"""What the pool takes for done: workers and their deaths are in test_run.py and test_faults.py."""

import errno
import logging
import tempfile
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

import fingerbench as fb
from fingerbench import pool
from fingerbench.bench import Bench
from fingerbench.cost import Effort
from fingerbench.errors import BuildError, UserError
from fingerbench.pool import Pool
from fingerbench.progress import Progress
from fingerbench.records import Images
from fingerbench.store import Spec, Store


@dataclass(frozen=True)
class Toy(Spec):
    kind: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    number: int
    parents: tuple["Toy", ...] = ()
    likeness: str = ""

    @property
    def alike(self):
        return self.likeness


class Inline(Pool):
    """Makes toys in this process, each of the same tensor, on the machine that `settings` name."""

    def _start(self):
        return SimpleNamespace()

    def _ask(self, _worker, spec):
        self.settings["made"].append(spec)
        self.store.save(spec, {"w": torch.tensor([spec.number, self.settings["machine"]])}, {})
        return {"status": "made", "seconds": 0.0}


@pytest.mark.parametrize("machine", [0, 1])
def test_a_parent_that_comes_out_differently_has_its_children_made_again(tmp_path, caplog, machine):
    source = Toy(0)
    theft, stranger = Toy(1, (source,)), Toy(2)
    answer = Toy(3, (theft, stranger))
    store, wanted = Store(tmp_path), [answer, stranger, source, theft]
    Inline(store, None, {"made": [], "machine": 0}, 1).run(wanted)
    made = []
    (store.path(source) / "payload.safetensors").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        Inline(store, None, {"made": made, "machine": machine}, 1).run(wanted)
    assert made == ([source, theft, answer] if machine else [source])
    assert caplog.text.count("it was made of another") == (2 if machine else 0)
    Inline(store, None, {"made": made, "machine": machine}, 1).run(wanted)
    assert len(made) == (3 if machine else 1)


def test_a_worker_goes_on_with_what_is_like_its_last_unless_something_more_urgent_is_ready(tmp_path):
    first, second = Toy(0, likeness="a"), Toy(1, likeness="b")
    urgent, third, fourth = Toy(2, (first,)), Toy(3, likeness="b"), Toy(4, likeness="a")
    made = []
    Inline(Store(tmp_path), None, {"made": made, "machine": 0}, 1).run([first, urgent, second, third, fourth])
    assert [toy.number for toy in made] == [0, 2, 1, 3, 4]
    made.clear()
    Inline(Store(tmp_path / "other"), None, {"made": made, "machine": 0}, 1).run([first, second, third, fourth])
    assert [toy.number for toy in made] == [0, 4, 1, 3]


def test_a_worker_is_warm_with_what_is_urgent_too(tmp_path):
    class Urgent(Toy):
        alike = ""
        warm = "b"

    made = []
    wanted = [Urgent(0), Toy(1, likeness="a"), Toy(2, likeness="b")]
    Inline(Store(tmp_path), None, {"made": made, "machine": 0}, 1).run(wanted)
    assert [toy.number for toy in made] == [0, 2, 1]


def test_the_time_left_is_worked_out_only_where_a_build_takes_long(tmp_path, monkeypatch):
    asked, told = [], threading.Event()

    class Long(Inline):
        def _ask(self, worker, spec):
            assert spec.number == 0 or told.wait(60)
            return {**super()._ask(worker, spec), "seconds": 1.0}

    def effort(spec):
        asked.append(spec)
        return Effort(spec.kind, 1.0)

    def build(kind, name):
        kind(Store(tmp_path / name), None, {"made": [], "machine": 0}, 1, effort).run([Toy(0), Toy(1)])

    monkeypatch.setattr(Progress, "show", lambda self, done, current, left: told.set() if left else None)
    monkeypatch.setattr(pool, "SHOW_S", 0.0)
    build(Inline, "short")
    assert not asked and not told.is_set()
    monkeypatch.setattr(pool, "TELL_S", 0.0)
    build(Long, "long")
    assert asked == [Toy(0), Toy(1)] and told.is_set()


CUDA_SAYS = """Traceback (most recent call last):
  File "a.py", line 1, in a
RuntimeError: hidden

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in b
    fail()
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


def test_of_a_traceback_that_goes_on_after_the_error_the_error_is_told(tmp_path, caplog):
    class Failing(Inline):
        def _ask(self, _worker, _spec):
            return {"status": "failed", "user": False, "error": CUDA_SAYS}

    with pytest.raises(BuildError, match="TORCH_USE_CUDA_DSA"), caplog.at_level(logging.WARNING):
        Failing(Store(tmp_path), None, {"made": [], "machine": 0}, 1).run([Toy(0)])
    assert (
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered; the others go on" in caplog.text
    )


def test_a_build_that_will_end_says_so_while_the_rest_is_made(tmp_path, caplog):
    begun, told = threading.Event(), threading.Event()

    class Refusing(Inline):
        def _ask(self, worker, spec):
            if spec.number == 0:
                assert begun.wait(60)
                return {"status": "failed", "user": True, "error": "a checkpoint is damaged; delete it"}
            begun.set()
            assert told.wait(60)
            return super()._ask(worker, spec)

        def _end_with(self, error):
            super()._end_with(error)
            told.set()

    made = []
    with pytest.raises(UserError, match="a checkpoint is damaged; delete it"), caplog.at_level(logging.WARNING):
        Refusing(Store(tmp_path), None, {"made": made, "machine": 0}, 2).run([Toy(0), Toy(1), Toy(2)])
    assert made == [Toy(1)]
    assert "ending, once what is being made (1) is done: a checkpoint is damaged; delete it" in caplog.text


def test_what_another_run_sets_aside_meanwhile_is_made_again(tmp_path, monkeypatch):
    store, made = Store(tmp_path), []
    Inline(store, None, {"made": made, "machine": 0}, 1).run([Toy(0)])
    verify = store.verify

    def late(spec):
        (store.path(spec)).rename(tmp_path / "aside")
        monkeypatch.setattr(store, "verify", verify)
        return verify(spec)

    monkeypatch.setattr(store, "verify", late)
    Inline(store, None, {"made": made, "machine": 0}, 1).run([Toy(0)])
    assert made == [Toy(0)] * 2


@pytest.mark.parametrize("failures", [1, 2])
def test_what_the_gpu_failed_at_is_tried_once_more(tmp_path, caplog, failures):
    class Faulty(Inline):
        def _ask(self, worker, spec):
            self.settings["asked"].append(spec)
            if spec.number == 1 and self.settings["asked"].count(spec) <= failures:
                return {"status": "failed", "user": False, "error": CUDA_SAYS, "again": True}
            return super()._ask(worker, spec)

    source = Toy(0)
    settings = {"made": [], "asked": [], "machine": 0}
    faulty = Faulty(Store(tmp_path), None, settings, 1)
    with caplog.at_level(logging.WARNING):
        if failures == 1:
            faulty.run([source, Toy(1, (source,))])
        else:
            with pytest.raises(BuildError, match="TORCH_USE_CUDA_DSA"):
                faulty.run([source, Toy(1, (source,))])
    assert "the GPU failed: torch.AcceleratorError: CUDA error: an illegal memory access" in caplog.text
    assert [toy.number for toy in settings["asked"]] == [0, 1, 1]


@dataclass(frozen=True)
class Copied(Spec):
    kind: ClassVar[str] = "copied"
    version: ClassVar[int] = 1

    def make(self, workshop):
        return {"x": workshop.data.a.x.clone(), "transfer": workshop.data.transfer.x.clone()}, {}


def test_a_full_disk_for_the_data_set_is_one_line(tmp_path, monkeypatch):
    bench = fb.open(f"store={tmp_path}", "device=cpu", "jobs=1")
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(Path("/dev/full").open, "wb"))
    said = "No space left on device; nothing finished is lost: .*, or choose another folder with the environment var"
    with pytest.raises(UserError, match=said):
        bench.build([Copied()])

    def nowhere():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(UserError, match=r"No usable temporary directory found in \['/tmp'\]; grant access to one, or"):
        bench.build([Copied()])


def test_what_is_of_another_data_set_is_not_made(tmp_path):
    bench = fb.open(f"store={tmp_path}", "device=cpu", "jobs=1")
    other = Bench(bench.settings, data=replace(bench.data, a=bench.data.b))
    with pytest.raises(UserError, match="source: expected something of data=digits as it is here; got"):
        bench.build([other.zoo.original()])


def test_threads_that_wait_for_a_parent_end_when_the_pool_is_stopped(tmp_path):
    class Interrupted(Inline):
        def _ask(self, _worker, _spec):
            self._stop()

        def _stop(self):
            with self._change:
                self._stopping = True

        def _bury(self, _spec, _worker):
            return False

    before = threading.active_count()
    source = Toy(0)
    Interrupted(Store(tmp_path), None, {"made": [], "machine": 0}, 2).run([source, Toy(1, (source,))])
    assert threading.active_count() == before


def test_workers_have_the_data_set_of_who_started_them(tmp_path):
    bench = fb.open(f"store={tmp_path}", "device=cpu", "jobs=1")
    changed = replace(bench.data, a=Images(255 - bench.data.a.x, bench.data.a.y))  # no loader gives that
    Bench(bench.settings, data=changed).build([Copied()])
    made = bench.store.load(Copied()).tensors
    assert torch.equal(made["x"], changed.a.x) and torch.equal(made["transfer"], changed.transfer.x)
