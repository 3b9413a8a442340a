"""What comes in from elsewhere: believed nothing, checked whole before anything is seen, never outside the store."""

import hashlib
import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from test_housekeeping import Holder, Toy, tree

from fingerbench import exchange, housekeeping
from fingerbench.__main__ import main
from fingerbench.errors import UserError
from fingerbench.store import PAYLOAD, RECORD, Store, Stored, _checksum

ONE, TWO = Toy(1.0, "source"), Toy(2.0, "prune/0.9", parent=Toy(1.0, "source"))
FIRST = f"toy/{ONE.key}"


def facts(path):
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def index(folder, **parts):
    """Write the index of what is in a folder, as its sender may."""
    files = {str(p.relative_to(folder)): facts(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop("index.json", None)
    content = {"schema": 1, "files": files | parts.pop("files", {})} | parts
    (folder / "index.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path):
    """What `export` writes, of toys."""
    store = Store(tmp_path / "out")
    for spec in (ONE, TWO):
        store.save(spec, {"w": torch.arange(6.0)}, {"accuracy": 0.5})
    shutil.rmtree(store.root / "drafts")
    (store.root / "README.md").write_text("# toys\n")
    return index(store.root)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def refused(folder, store, match):
    """An import of `folder` says what is wrong, in one line, and leaves nothing at all."""
    with pytest.raises(UserError, match=match) as caught:
        exchange.import_from(store, str(folder))
    assert "\n" not in str(caught.value)
    artefacts = [path for path in tree(store.root) if not path.startswith("locks")] if store.root.exists() else []
    assert artefacts in ([], ["drafts"])


def test_what_is_sound_comes_in_whole(folder, store, tmp_path):
    done = exchange.import_from(store, str(folder))
    assert sorted(done.added) == ["toy prune/0.9", "toy source"] and done.kept == 0
    assert all(store.verify(spec) is None for spec in (ONE, TWO))
    assert torch.equal(store.load(ONE).tensors["w"], torch.arange(6.0)) and store.facts(TWO) == {"accuracy": 0.5}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "store"}
    assert not any((store.root / "drafts").iterdir())


def test_what_is_there_stays(folder, store):
    store.save(ONE, {"w": torch.zeros(1)}, {"mine": 1})
    done = exchange.import_from(store, str(folder))
    assert done.added == ("toy prune/0.9",) and done.kept == 1
    assert store.facts(ONE) == {"mine": 1}
    assert exchange.import_from(store, str(folder)) == exchange.Imported((), 2)


@pytest.mark.parametrize("name", [f"{FIRST}/{PAYLOAD}", f"{FIRST}/{RECORD}", "README.md"])
@pytest.mark.parametrize("there", [False, True])
def test_a_flipped_bit_is_found(folder, store, name, there):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    if there:
        store.save(ONE, {}, {})
        with pytest.raises(UserError, match=name):
            exchange.import_from(store, str(folder))
        assert not store.has(TWO)
    else:
        refused(folder, store, f"{name} is not the file")


@pytest.mark.parametrize("name", [f"{FIRST}/{PAYLOAD}", f"{FIRST}/{RECORD}", "README.md"])
def test_a_missing_or_cut_file_is_found(folder, store, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    refused(folder, store, f"{name} is not the file")
    (folder / name).unlink()
    refused(folder, store, f"{name} is missing")
    (folder / name).mkdir()
    refused(folder, store, f"{name} is missing")


HASH = "a" * 64


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        f"../toy/{HASH}/{RECORD}",
        f"toy/../{HASH}/{RECORD}",
        f"/toy/{HASH}/{RECORD}",
        f"toy/{HASH}/../../{RECORD}",
        f"toy/{HASH}/code.py",
        f"toy/{HASH}/payload.pt",
        f"locks/{HASH}/{RECORD}",
        f"drafts/{HASH}/{RECORD}",
        f"toy/{HASH[:-1]}/{RECORD}",
        f"toy/{HASH}/{RECORD}\n",
        f"TOY\\{HASH}\\{RECORD}",
        "",
    ],
)
def test_a_name_that_no_store_has_is_refused(folder, store, name):
    refused(index(folder, files={name: {"bytes": 0, "sha256": HASH}}), store, "which no store has")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no object"),
        (b"{}", "schema None"),
        (b'{"schema": 0, "files": {}}', "schema 0.*older"),
        (b'{"schema": 2, "files": {}}', "schema 2.*newer"),
        (b'{"schema": true, "files": {}}', "schema True"),
        (b'{"schema": 1}', "no files"),
        (b'{"schema": 1, "files": []}', "no files"),
        (b'{"schema": 1, "files": {}}', "at least one artefact"),
        (b'{"schema": 1, "files": {"README.md": {"bytes": 1.5, "sha256": ""}}}', "size and sha256"),
        (b'{"schema": 1, "files": {"README.md": 7}}', "size and sha256"),
        (f'{{"schema": 1, "files": {{"toy/{HASH}/{RECORD}": {{"bytes": 1, "sha256": ""}}}}}}'.encode(), "lacks"),
    ],
)
def test_an_index_of_another_form_is_refused(folder, store, content, match):
    (folder / "index.json").write_bytes(content)
    refused(folder, store, match)


def rewrite(folder, change, payload=None):
    """Change the record of the first artefact, checksums and index included, as a sender of bad will can."""
    path = folder / FIRST / RECORD
    record = json.loads(path.read_bytes())
    record.pop("record_sha256")
    if payload is not None:
        (folder / FIRST / PAYLOAD).write_bytes(payload)
        record |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    change(record)
    path.write_text(json.dumps(record | {"record_sha256": _checksum(record)}))
    return index(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(schema=0),
        lambda record: record.update(schema=2),
        lambda record: record.pop("schema"),
        lambda record: record.update(kind="model"),
        lambda record: record.update(key=HASH),
        lambda record: record["spec"].update(lr=7.0),  # the key is no longer that of the spec
        lambda record: record["spec"].pop("kind"),
        lambda record: record.update(spec=[]),
        lambda record: record.update(spec={"kind": "toy", "x": float("nan")}),
        lambda record: record.update(facts=None),
        lambda record: record.update(label=None),
        lambda record: record.pop("bytes"),
        lambda record: record.pop("sha256"),
    ],
)
def test_a_record_that_lies_is_refused(folder, store, change):
    refused(rewrite(folder, change), store, f"toy/{ONE.key[:16]}")


@pytest.mark.parametrize("payload", [b"", b"rubbish!", b"\x80\x04\x95", b"\xff" * 64, (2**40).to_bytes(8, "little")])
def test_a_payload_that_is_none_is_refused(folder, store, payload):
    refused(rewrite(folder, lambda record: None, payload), store, f"toy/{ONE.key[:16]}")


def test_the_tricks_above_need_their_trick(folder, store):
    sound = safetensors.torch.save({"w": torch.zeros(2)})
    rewrite(folder, lambda record: None, sound)
    assert exchange.import_from(store, str(folder)).kept == 0 and torch.equal(
        store.load(ONE).tensors["w"], torch.zeros(2)
    )


def test_two_imports_do_not_meet(folder, store):
    job = hashlib.sha256((folder / "index.json").read_bytes()).hexdigest()
    with Holder(store, Stored("import", job)):
        refused(folder, store, "no other process")
    assert exchange.import_from(store, str(folder)).kept == 0


def test_what_a_killed_import_left_is_temporary(folder, store, monkeypatch):
    monkeypatch.setattr(exchange, "_checked", lambda *_: os._exit(9))
    child = os.fork()
    if not child:
        exchange.import_from(store, str(folder))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert not store.has(ONE) and any((store.root / "drafts").iterdir())
    whys = {item.why for item in housekeeping.remove(store, housekeeping.temporary(store))}
    assert whys == {"draft of a dead process", "lock that nobody holds"}
    assert exchange.import_from(store, str(folder)).kept == 0


def test_a_store_that_cannot_be_written_says_so(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert main(["import", str(folder), f"store={tmp_path / 'file' / 'store'}"]) == 2
    assert "cannot write to" in capsys.readouterr().err

    def full(file, place=None):
        raise OSError(28, "No space left on device", str(place))

    monkeypatch.setattr(exchange, "_copy", full)
    assert main(["import", str(folder), f"store={tmp_path / 'store'}"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path for path in tree(tmp_path / "store") if path.startswith(("toy", "drafts/"))] == []


def test_no_folder_is_told(tmp_path, capsys):
    assert main(["import", str(tmp_path / "none"), f"store={tmp_path / 'store'}"]) == 2
    assert "a folder that `export` wrote" in capsys.readouterr().err and not (tmp_path / "store").exists()


class Hub:
    """A stand-in for huggingface_hub, which keeps repositories in a folder."""

    def __init__(self, root):
        self.root = root
        self.private = {}

    def HfApi(self):  # noqa: N802 - its name there
        return self

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert repo_type == "model" and exist_ok
        self.private[repo_id] = private

    def upload_folder(self, *, repo_id, repo_type, folder_path):
        shutil.copytree(folder_path, self.root / repo_id)

    def snapshot_download(self, repo_id, *, revision, local_dir, allow_patterns):
        if revision == "gone":
            raise ConnectionError("no route\nto the hub")
        shutil.copytree(self.root / repo_id, local_dir, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(exchange, "_hub", lambda: hub)
    return hub


def test_a_hub_gives_and_takes(folder, store, hub, monkeypatch):
    monkeypatch.setattr(exchange, "chosen", lambda *_: [ONE, TWO])
    monkeypatch.setattr(
        exchange,
        "_write_folder",
        lambda bench, specs, target, model: shutil.copytree(folder, target, dirs_exist_ok=True),
    )
    exchange.export_to(None, "hf://me/toys")
    assert hub.private == {"me/toys": True}
    assert sorted(exchange.import_from(store, "hf://me/toys@main").added) == ["toy prune/0.9", "toy source"]


def test_a_hub_is_believed_no_more_than_a_folder(folder, store, hub):
    (folder / FIRST / PAYLOAD).write_bytes(b"x")
    shutil.copytree(folder, hub.root / "me" / "toys")
    refused("hf://me/toys", store, "hf://me/toys: .* is not the file")


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(store, hub):
    refused("hf://me/toys@gone", store, "cannot reach hf://me/toys@gone: no route to the hub; is there a network")
    for address in ("hf://me", "hf://me/../toys", "hf://me/toys/more", "hf://"):
        refused(address, store, "USER/REPO")


def test_a_hub_that_is_not_installed_is_told(store, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    refused("hf://me/toys", store, r"pip install -e '\.\[hub\]'")
