"""gc, du, and with a real zoo export and import: what may go goes, what somebody needs or holds stays."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from conftest import ROOT, TINY

import fingerbench as fb
from fingerbench import config, housekeeping
from fingerbench.__main__ import main
from fingerbench.errors import UserError
from fingerbench.evaluate import experiment
from fingerbench.store import RECORD, Spec, Store

FAMILIES = "attack=[source,finetune,distill]"


@dataclass(frozen=True)
class Toy(Spec):
    kind: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    lr: float
    name: str = field(default="prune/0.5", compare=False)
    parent: "Toy | None" = None

    @property
    def label(self):
        return self.name


@dataclass(frozen=True)
class Answers(Spec):
    kind: ClassVar[str] = "response"
    version: ClassVar[int] = 1
    suspect: Toy
    evasion: Toy | None = None
    data: str = "0" * 64


OLD, YOUNG, OTHER, EVASION = Toy(1.0, "source"), Toy(2.0, parent=Toy(1.0)), Toy(3.0, "mirror/noise/1"), Toy(4.0, "jpeg")
ASKED, UNASKED = Answers(YOUNG, EVASION), Answers(OTHER, EVASION)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    for spec in (OLD, YOUNG, OTHER, EVASION, ASKED, UNASKED):
        store.save(spec, {"w": torch.zeros(100)}, {})
    return store


def put(path, content=b"12345678"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def litter(store):
    """Everything that a dead process may leave behind, of a key that no artefact has, or that one has."""
    unfinished = Toy(9.0)
    with store.claim(OLD):
        pass
    lost = store.path(Toy(8.0))
    put(lost / "payload.safetensors")
    return {
        put(store.root / "drafts" / f"{unfinished.key}-host-123" / RECORD).parent: "draft of a dead process",
        put(store.checkpoint(unfinished).with_suffix(".part")): "half-written checkpoint",
        put(store.checkpoint(OLD)): "checkpoint of a finished artefact",
        put(store.root / "damaged" / "toy-0123-1" / RECORD).parent: "damaged, set aside",
        store.root / "locks" / f"{OLD.key}.lock": "lock that nobody holds",
        lost: "artefact without a record",
    }


class Holder:
    """Another process that holds the lock of a spec, of the kind that the store has."""

    def __init__(self, store, spec):
        code = f"""
import sys
from fingerbench.store import Store, Stored
with Store({str(store.root)!r}, {store.locks!r}, {store.lease_s}).claim(Stored("", {spec.key!r})) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
        assert self.process.stdout.readline().strip() == "True"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


def tree(root):
    return {str(path.relative_to(root)): path.is_file() and path.read_bytes() for path in root.rglob("*")}


def paths(items):
    return {item.path for item in items}


def keys(items):
    return {item.key for item in items}


def test_what_the_dead_left_is_found_and_removed(store):
    expected = litter(store)
    kept = put(store.checkpoint(Toy(9.0)))  # of a training that may go on
    put(store.root / "notes.txt")
    before = tree(store.root)
    items = housekeeping.collect(store)
    assert {item.path: item.why for item in items} == expected
    assert all(item.bytes == (0 if item.path.suffix == ".lock" else 8) for item in items)
    assert tree(store.root) == before
    assert paths(housekeeping.remove(store, items)) == set(expected)
    row = {"kind": "checkpoint", "family": "", "count": 1, "bytes": 8}
    assert row in housekeeping.usage(store)["artefacts"]
    assert not any(path.exists() for path in expected) and kept.is_file() and (store.root / "notes.txt").is_file()
    assert housekeeping.collect(store) == []
    assert all(store.verify(spec) is None for spec in (OLD, YOUNG, OTHER, EVASION, ASKED, UNASKED))


def test_a_training_that_nothing_kept_needs_may_go(store):
    needed, other = put(store.checkpoint(Toy(8.0))), put(store.checkpoint(Toy(9.0)))
    roots = {OLD.key, Toy(8.0).key}
    items = [item for item in housekeeping.unreferenced(store, roots) if item.path in (needed, other)]
    assert [(item.path, item.why) for item in items] == [(other, "unreferenced checkpoint")]
    housekeeping.remove(store, items)
    assert needed.is_file() and not other.exists()


def test_what_a_live_process_holds_is_not_collected(store):
    expected = litter(store)
    items = housekeeping.collect(store)
    held = {path for path in expected if path.name.startswith(OLD.key)}
    assert {path.suffix for path in held} == {".pt", ".lock"}
    with Holder(store, OLD):
        assert paths(housekeeping.collect(store)) == set(expected) - held
        gone = housekeeping.remove(store, items)  # listed before it was held
        assert paths(gone) == set(expected) - held and all(path.exists() for path in held)
    assert paths(housekeeping.collect(store)) == held


@pytest.mark.parametrize("locks", ["flock", "lease"])
def test_leases_are_watched_until_they_have_run_out(store, locks):
    """Whatever kind of lock the store has now, and whatever kind is in it."""
    draft = put(store.root / "drafts" / f"{OTHER.key}-1" / RECORD).parent
    stray = put(store.root / "locks" / f"{YOUNG.key}.lock", b"")
    looking = Store(store.root, locks, lease_s=1.0)
    with Holder(Store(store.root, "lease", lease_s=1.0), OTHER) as holder:
        assert paths(housekeeping.temporary(looking)) == {stray}
        with pytest.raises(UserError, match=f"{OTHER.key}.lease"):
            housekeeping.remove(looking, housekeeping.unreferenced(store, {OLD.key}))
        holder.process.kill()
        holder.process.wait()
        assert paths(housekeeping.temporary(looking)) == {draft, stray}
    assert paths(housekeeping.remove(looking, housekeeping.temporary(looking))) == {draft, stray}
    assert not any((store.root / "locks").iterdir())


def test_an_artefact_that_got_its_record_meanwhile_stays(store):
    record = store.path(OLD) / RECORD
    content = record.read_bytes()
    record.unlink()
    (item,) = housekeeping.temporary(store)
    record.write_bytes(content)
    assert housekeeping.remove(store, [item]) == [] and store.verify(OLD) is None


@pytest.mark.parametrize(
    ("roots", "gone"),
    [
        ([YOUNG], [OTHER, UNASKED]),  # its parent, its answers and the evasion under which it gave them stay
        ([OLD], [YOUNG, OTHER, EVASION, ASKED, UNASKED]),
        ([OTHER, YOUNG], []),
        ([ASKED], [OTHER, UNASKED]),
    ],
)
def test_kept_are_parents_and_what_was_measured_of_kept_things(store, roots, gone):
    items = housekeeping.unreferenced(store, {spec.key for spec in roots})
    assert keys(items) == {spec.key for spec in gone}
    assert keys(housekeeping.remove(store, items)) == {spec.key for spec in gone}
    left = {entry.spec.key for entry in housekeeping.entries(store)}
    assert left == {spec.key for spec in (OLD, YOUNG, OTHER, EVASION, ASKED, UNASKED)} - {spec.key for spec in gone}
    assert housekeeping.temporary(store) == []


def manifest(folder, **parts):
    put(folder / "manifest.json", json.dumps({"schema": 1, **parts}).encode())
    return folder


def test_the_manifests_of_a_folder_say_what_is_needed(store, tmp_path, capsys):
    manifest(tmp_path / "runs" / "0", store={"root": "store", "suspects": {"prune/0.5": YOUNG.key}, "gan": None})
    manifest(tmp_path / "runs" / "sweep" / "1", store={"fingerprint": ASKED.key})
    words = ["gc", f"store={store.root}", "--keep", str(tmp_path / "runs")]
    before = tree(store.root)
    assert main(words) == 0
    assert tree(store.root) == before
    out = capsys.readouterr().out
    assert f"unreferenced toy: {store.path(OTHER)}" in out and "--delete would delete 2 things" in out
    assert main([*words, "--delete"]) == 0
    assert "deleted 2 things" in capsys.readouterr().out
    assert not store.has(OTHER) and not store.has(UNASKED) and store.has(OLD) and store.has(EVASION)


def test_a_run_that_did_not_end_keeps_what_its_words_need(store, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(housekeeping, "plan", lambda words: asked.append(list(words)) or [YOUNG])
    begun = {"words": ["method=akh", "launcher=slurm", "shard=1", "store=there"], "launcher": None, "subdir": ""}
    begun |= {"hydra": ["hydra.searchpath=[file:///conf]"], "cwd": "/", "ended": None, "state": "running"}
    begun |= {"schema": 1, "started": "2026-01-02T03:04:05+00:00", "error": None}
    put(tmp_path / "runs" / "0" / "status.json", json.dumps(begun).encode())
    manifest(tmp_path / "runs" / "1", store={"suspects": {"jpeg": EVASION.key}})
    put(tmp_path / "runs" / "1" / "status.json")
    found = housekeeping.collect(store, [str(tmp_path / "runs")], [f"store={store.root}"])
    assert asked == [["method=akh", f"store={store.root}", "hydra.searchpath=[file:///conf]"]]
    assert keys(found) == {OTHER.key, UNASKED.key}
    manifest(tmp_path / "runs" / "0", store={"suspects": {"jpeg": EVASION.key}})  # of an earlier run, into its folder
    again = housekeeping.collect(store, [str(tmp_path / "runs")], [f"store={store.root}"])
    assert keys(again) == keys(found) and len(asked) == 2
    (tmp_path / "runs" / "0" / "manifest.json").unlink()
    put(tmp_path / "runs" / "0" / "status.json", b"{")
    with pytest.raises(UserError, match=r"cannot tell what .*0/status\.json needs: .*not the status of a job; leave"):
        housekeeping.collect(store, [str(tmp_path / "runs")])


def test_a_run_that_was_refused_may_be_removed(store, tmp_path):
    refused = {"words": ["queries=abc"], "launcher": None, "subdir": "", "hydra": [], "cwd": "/", "state": "failed"}
    refused |= {"schema": 1, "started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:04:06+00:00"}
    words = [f"store={store.root}"]
    for error, hint in (
        ("queries: expected a whole number from 1; got 'abc'", "so it ended as well"),
        ("", "mend that"),
    ):
        put(tmp_path / "runs" / "0" / "status.json", json.dumps(refused | {"error": error}).encode())
        with pytest.raises(UserError, match=rf"cannot tell what .*status\.json needs: queries: .*got 'abc'; {hint}"):
            housekeeping.collect(store, [str(tmp_path / "runs")], words)


def test_a_run_that_was_refused_leaves_what_its_folder_had(store, tmp_path):
    refused = {"words": ["queries=abc"], "launcher": None, "subdir": "", "hydra": [], "cwd": "/", "state": "failed"}
    refused |= {"schema": 1, "started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:04:06+00:00"}
    refused |= {"error": "queries: expected a whole number from 1; got 'abc'"}
    manifest(tmp_path / "0", store={"suspects": {"jpeg": EVASION.key}})
    put(tmp_path / "0" / "status.json", json.dumps(refused).encode())
    found = housekeeping.collect(store, [str(tmp_path)], [f"store={store.root}"])
    assert EVASION.key not in keys(found) and OTHER.key in keys(found)


def test_a_store_that_may_not_be_written_is_measured(store, monkeypatch, capsys):
    litter(store)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["du", f"store={store.root}"]) == 0
    assert "temporary" not in capsys.readouterr().out


def test_what_another_took_away_first_stops_nothing(store):
    items = housekeeping.unreferenced(store, {YOUNG.key})
    (gone,) = [item for item in items if item.key == OTHER.key]
    shutil.rmtree(gone.path)
    housekeeping.remove(store, items)
    assert housekeeping.unreferenced(store, {YOUNG.key}) == [] and store.has(YOUNG)


def test_without_keep_no_artefact_goes(store, capsys):
    assert main(["gc", f"store={store.root}", "--delete"]) == 0
    assert "deleted 0 things" in capsys.readouterr().out
    assert len(housekeeping.entries(store)) == 6


def test_no_artefact_goes_while_something_is_being_made(store, tmp_path, capsys):
    runs = manifest(tmp_path / "runs", store={"suspects": {"prune/0.5": YOUNG.key}})
    with Holder(store, Toy(7.0)):
        assert main(["gc", f"store={store.root}", "--keep", str(runs), "--delete"]) == 2
    assert "1 locks, such as" in capsys.readouterr().err and store.has(OTHER)


def test_keeping_nothing_that_is_there_is_refused(store, tmp_path, capsys):
    runs = manifest(tmp_path / "runs", store={"suspects": {"prune/0.5": "f" * 64}})
    for kept, said in ((str(runs), "something that is in the store"), (str(tmp_path / "no"), "a folder of runs")):
        assert main(["gc", f"store={store.root}", "--keep", kept, "--delete"]) == 2
        assert said in capsys.readouterr().err
    assert len(housekeeping.entries(store)) == 6


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"schema": 2}', b'{"store": {}}'])
def test_a_manifest_that_cannot_be_read_stops_it(store, tmp_path, content):
    path = put(tmp_path / "runs" / "manifest.json", content)
    with pytest.raises(UserError, match=str(path)):
        housekeeping.collect(store, [str(tmp_path / "runs")])


def test_a_damaged_record_that_is_kept_stops_it(store):
    put(store.path(YOUNG) / RECORD, b"rubbish")
    with pytest.raises(UserError, match="damaged"):
        housekeeping.unreferenced(store, {YOUNG.key})
    assert YOUNG.key not in keys(housekeeping.unreferenced(store, {OTHER.key}))  # nobody knows whether it is needed


@pytest.mark.parametrize("schema", [0, 2])
def test_a_store_of_another_schema_is_recognised(tmp_path, monkeypatch, schema, capsys):
    store = Store(tmp_path)
    monkeypatch.setattr("fingerbench.store.SCHEMA", schema)
    store.save(OLD, {}, {})
    monkeypatch.undo()
    before = tree(tmp_path)
    assert main(["du", f"store={tmp_path}"]) == 2
    assert f"has schema {schema}, this version reads 1" in capsys.readouterr().err
    for read in (store.load, store.verify, lambda spec: housekeeping.unreferenced(store, {spec.key})):
        with pytest.raises(UserError, match=f"schema {schema}, this version reads 1"):
            read(OLD)
    assert tree(tmp_path) == before


def test_sizes_are_told_the_largest_first(store, capsys):
    litter(store)
    assert main(["du", f"store={store.root}", "--json"]) == 0
    usage = json.loads(capsys.readouterr().out)
    rows = [(row["kind"], row["family"], row["count"]) for row in usage["artefacts"]]
    assert sorted(rows) == [
        ("response", "response", 2),
        *(("toy", name, 1) for name in ("jpeg", "noise", "prune", "source")),
    ]
    sizes = [row["bytes"] for row in usage["artefacts"]]
    assert sizes == sorted(sizes, reverse=True) and len(usage["temporary"]) == 6
    everything = sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file())
    assert usage["bytes"] == everything
    assert main(["du", f"store={store.root}"]) == 0
    assert f"{housekeeping.size(everything)} in {store.root}" in capsys.readouterr().out


def test_a_store_that_is_not_there_is_told(tmp_path, capsys):
    for command in ("du", "gc"):
        assert main([command, f"store={tmp_path / 'none'}"]) == 2
        assert "the folder of a store" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_sizes_for_people():
    sizes = {0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 2**30: "1.0 GiB", 3 * 2**40: "3.0 TiB"}
    assert {count: housekeeping.size(count) for count in sizes} == sizes


def test_the_cells_of_an_experiment_are_one_command():
    words = ["experiment=methods", "experiment.seeds=[0,1]", "experiment.grid.method=[ipguard,akh]", "queries=7"]
    drawing = experiment.composed(config.compose(words))
    commands = [cell.command for cell in experiment.cells(drawing, words)]
    assert len(commands) == 4 and set(housekeeping._joined(commands)) == set(words)
    there = [f"{command} data.root=/there" for command in commands]
    joined = housekeeping._joined(there, ["data.root=/here", "store=s", "queries=8"])
    assert set(joined) == {*words, "data.root=/here", "store=s"}


def test_a_real_zoo_is_kept_by_its_run_and_by_its_words(built, tmp_path, capsys):
    store, run, _ = built
    copy = shutil.copytree(store, tmp_path / "store")
    words = [*TINY, f"store={copy}"]
    main(["verify", *words, "method=random", FAMILIES])
    whole = capsys.readouterr().out
    assert main(["gc", f"store={copy}", "--keep", str(run), "--delete"]) == 0  # what other tests put there may go
    assert "unreferenced model" not in capsys.readouterr().out
    main(["verify", *words, "method=random", FAMILIES])
    assert capsys.readouterr().out == whole
    assert main(["gc", *words, "--keep", "method=random attack=[source,finetune]", "--delete"]) == 0
    assert "4  unreferenced model" in capsys.readouterr().out
    assert main(["verify", *words, "method=random", "attack=[source,finetune]"]) == 0
    sound = capsys.readouterr().out.splitlines()[-1]
    assert main(["verify", *words, "method=random", FAMILIES]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == sound  # nothing else is left
    bench = fb.open(*words, "method=random", FAMILIES)
    kept = {name: bench.store.has(spec) for name, spec in bench.models.items()}
    assert kept == {name: "distill" not in name for name in kept}


def test_a_zoo_goes_from_store_to_store(built, tmp_path, capsys):
    words = [*TINY, "method=random", FAMILIES]
    out, there = tmp_path / "out", tmp_path / "there"
    assert main(["export", str(out), *words, f"store={built[0]}", "data.root=/home/me"]) == 2  # digits have no root
    assert main(["export", str(out), *words, f"store={built[0]}"]) == 0
    assert "exported 14 models" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    for text in ("| `finetune/FTLL` | resnet18 | 0.125 | A | Finetune | FTLL | source |", "CC BY 4.0", "evaluating"):
        assert text in card
    told = card + (out / "index.json").read_text()
    assert str(tmp_path) not in told and "jobs=" not in told  # nothing of the exporter's machine
    assert main(["import", str(out), f"store={there}"]) == 0
    assert "added 14, found 0 already there" in capsys.readouterr().out
    bench, before = fb.open(*words, f"store={there}"), tree(there)
    x = bench.data.test.pixels()[:50]
    one, two = bench.model("finetune/FTLL"), fb.open(*words, f"store={built[0]}").model("finetune/FTLL")
    assert torch.equal(one(x), two(x))
    assert tree(there) == before  # nothing was made
    assert main(["import", str(out), f"store={there}"]) == 0
    assert "added 0, found 14 already there" in capsys.readouterr().out


def test_one_model_goes_alone(built, tmp_path, capsys, caplog):
    words = [*TINY, "method=random", FAMILIES]
    assert main(["export", str(tmp_path / "out"), "--model", "distill/vgg13_bn", *words, f"store={built[0]}"]) == 0
    assert main(["import", str(tmp_path / "out"), f"store={tmp_path / 'there'}"]) == 0
    assert "added model distill/vgg13_bn\n" in capsys.readouterr().out
    with caplog.at_level("INFO"):
        model = fb.open(*words, f"store={tmp_path / 'there'}").model("distill/vgg13_bn")
    assert "found 1 of 1 models; nothing to make" in caplog.text
    assert not model.training and model(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert list(index["models"]) == ["distill/vgg13_bn"] and len(index["files"]) == 3


def test_an_export_says_what_is_missing_or_in_the_way(built, tmp_path, capsys):
    words = [*TINY, "method=random", FAMILIES, f"store={built[0]}"]
    put(tmp_path / "full" / "file")
    for case, said in (
        ([str(tmp_path / "full"), *words], "empty or not there"),
        ([str(tmp_path / "full" / "file" / "below"), *words], "cannot write to"),
        ([str(tmp_path / "out"), *words, "--model", "prune/0.9"], "unknown suspect 'prune/0.9'"),
        ([str(tmp_path / "out"), *words[:-2], "attack=[source,prune]", words[-1]], "are not in the store"),
    ):
        assert main(["export", *case]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and len(tree(tmp_path / "full")) == 1


def test_an_export_that_runs_out_of_room_leaves_nothing(built, tmp_path, monkeypatch, capsys):
    from fingerbench import exchange

    copy, count = exchange._copy, []

    def full(file, place=None):
        count.append(file)
        if len(count) > 5:
            raise OSError(28, "No space left on device", str(place))
        return copy(file, place)

    monkeypatch.setattr(exchange, "_copy", full)
    assert main(["export", str(tmp_path / "out"), *TINY, "method=random", FAMILIES, f"store={built[0]}"]) == 2
    assert "No space left on device" in capsys.readouterr().err and tree(tmp_path / "out") == {}


def test_a_damaged_artefact_is_not_exported(built, tmp_path, capsys):
    copy = shutil.copytree(built[0], tmp_path / "store")
    payload = next((copy / "model").glob("*/payload.safetensors"))
    payload.write_bytes(payload.read_bytes()[:-1] + b"\1")
    assert main(["export", str(tmp_path / "out"), *TINY, "method=random", FAMILIES, f"store={copy}"]) == 2
    assert "checksum" in capsys.readouterr().err and tree(tmp_path / "out") == {}


def test_the_shell_completes_names(tmp_path):
    script = """
eval "$(python run.py -sc install=bash)"
complete -p python
COMP_LINE="python run.py method=nat" COMP_POINT=24 COMP_WORDS=($COMP_LINE) COMP_CWORD=2
hydra_bash_completion
echo "${COMPREPLY[*]}"
"""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # noqa: PTH120
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert "-F hydra_bash_completion python" in done.stdout and done.stdout.endswith("method=naturalfinger\n"), done
