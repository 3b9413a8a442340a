"""Files of strangers: whatever is in them, a documented error comes out, or something sound. No pickle is read."""

import ast
import csv
import hashlib
import io
import json
import os
import pickle
import shutil
import struct

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_report import scores, write
from test_store import TENSORS, Toy

import fingerbench as fb
from fingerbench.checkpoint import Checkpoint
from fingerbench.data.cifar10 import Cifar10
from fingerbench.errors import DamagedError, UserError
from fingerbench.evaluate import tables
from fingerbench.evaluate.report import COLUMNS, comparison, load, read_scores, report
from fingerbench.fingerprints import read_fingerprint, write_fingerprint
from fingerbench.gans.sagan import Sagan
from fingerbench.records import Fingerprint, Images
from fingerbench.store import PAYLOAD, RECORD, Store, _checksum
from fingerbench.untrusted import parse_json, parse_tensors
from fingerbench.zoo.given import Given

SHARED = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
QUICK = settings(derandomize=True, max_examples=200, **SHARED)
LONG = settings(max_examples=3000, **SHARED)

ODD = ["", "nan", "-inf", "1e999", "9" * 30, "\x00", "\ud800", '"', "a,b\n", "$x_{", "../..", "True", "0.5", "é" * 300]
TEXTS = st.sampled_from(ODD) | st.text(max_size=8)
NUMBERS = st.integers() | st.sampled_from([2**63, -(2**63) - 1, 10**400, 0.5, 1e308]) | st.floats()
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
WIDTHS = [("F8_E8M0", 1), ("F8_E4M3", 1), ("BOOL", 1), ("BF16", 2), ("F32", 4), ("F64", 8), ("C64", 8), ("U64", 8)]
EXTREME = [b"", b"{}", b"[]", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xef\xbb\xbf{}", b"\xff\xfe{"]


@st.composite
def spoilt(draw, sound: bytes) -> bytes:
    """Return bytes that were `sound` before bits flipped and parts went missing or came in; or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200) | st.sampled_from(EXTREME))
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "remove", "replace"])):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = draw(st.binary(max_size=8))
            case "remove":
                del content[at : at + draw(st.integers(1, 40))]
            case "replace":
                content[at : at + 8] = draw(st.binary(max_size=8))
    return bytes(content)


@st.composite
def altered(draw, value):
    """Return plain data, one or two parts of it replaced, dropped or added."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        at, parent, key = value, None, None
        while isinstance(at, dict | list) and at and (parent is None or draw(st.integers(0, 3))):
            parent = at
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            at = parent[key]
        match draw(st.sampled_from(["replace", "replace", "drop", "add"])):
            case "replace" if parent is not None:
                parent[key] = draw(VALUES)
            case "drop" if parent is not None:
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[draw(TEXTS)] = draw(VALUES)
            case _:
                return draw(VALUES)
    return value


def as_json(draw, value) -> bytes:
    """Return `value` as JSON, now and then with a key twice."""
    text = json.dumps(draw(altered(value)))
    if text.startswith("{") and draw(st.integers(0, 5)) == 0:
        text = "{" + json.dumps(draw(st.sampled_from(sorted(value)))) + ":" + json.dumps(draw(VALUES)) + "," + text[1:]
    return text.encode()


@st.composite
def repacked(draw, sound: bytes) -> bytes:
    """Return a safetensors file with an altered header: names, dtypes, shapes, offsets, and its length."""
    size = int.from_bytes(sound[:8], "little")
    header = draw(altered(json.loads(sound[8 : 8 + size])))
    parts = [part for part in header.values() if isinstance(part, dict)] if isinstance(header, dict) else []
    if parts and draw(st.booleans()):
        part = draw(st.sampled_from(parts))
        ends = part.get("data_offsets")
        if (
            isinstance(ends, list)
            and len(ends) == 2
            and all(isinstance(end, int) for end in ends)
            and draw(st.booleans())
        ):
            name, width = draw(st.sampled_from(WIDTHS))  # the same bytes, as something else
            part |= {"dtype": name, "shape": [max(0, ends[1] - ends[0]) // width]}
        else:
            sizes = st.sampled_from([0, 1, 8, 2**31, 2**62, 2**63 - 1, 2**64, -1])
            part |= {"data_offsets": [draw(sizes), draw(sizes)], "shape": draw(st.lists(sizes, max_size=5))}
    text = json.dumps(header).encode()
    length = draw(st.sampled_from([len(text)] * 5 + [0, 2**63, len(text) + 1]))
    return struct.pack("<Q", length) + text + sound[8 + size :]


@st.composite
def resaid(draw, sound: bytes) -> bytes:
    """Return a scores.csv with cells that say anything, and rows and columns that are gone, twice or longer."""
    rows = list(csv.reader(io.StringIO(sound.decode())))
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, len(COLUMNS) - 1))
        match draw(
            st.sampled_from(["cell", "cell", "column", "drop column", "double column", "drop", "double", "longer"])
        ):
            case "cell" if column < len(rows[row]):
                rows[row][column] = draw(TEXTS)
            case "column":
                text = draw(TEXTS)
                rows = [rows[0], *([*line[:column], text, *line[column + 1 :]] for line in rows[1:])]
            case "drop column":
                rows = [line[:column] + line[column + 1 :] for line in rows]
            case "double column":
                rows = [line[:column] + line[column : column + 1] + line[column:] for line in rows]
            case "drop" if len(rows) > 1:
                del rows[row]
            case "double":
                rows.insert(row, list(rows[row]))
            case "longer":
                rows[row:] = [[*line, draw(TEXTS)] for line in rows[row:]]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode(errors="surrogatepass")


def documented(call, *expected, naming):
    """Return what `call` does; None where it raises an expected error that names the file in one line."""
    try:
        return call()
    except expected as error:
        assert str(naming) in str(error) and str(error).isprintable() and len(str(error)) < 1000
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a fingerprint and a store, all sound; a property spoils one file and mends it."""
    folder = tmp_path_factory.mktemp("place")
    write(folder / "run", scores(), models={"source": "123"})
    queries = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    write_fingerprint(Fingerprint(queries, {"labels": torch.arange(3)}, {"tried": 5}), folder / "f.safetensors")
    store = Store(folder / "store")
    store.save(Toy(1.0), TENSORS, {"accuracy": 0.5, "nested": {"a": [1, None]}})
    return folder


def fingerprint_file(place, draw):
    file = place / "f.safetensors"
    sound = file.read_bytes()
    hostile = place / "hostile.safetensors"
    hostile.write_bytes(draw(spoilt(sound) | repacked(sound)))
    found = documented(lambda: read_fingerprint(hostile), UserError, naming=hostile)
    if found is not None:
        q = found.queries
        assert q.dtype == torch.float32 and q.ndim == 4 and (len(q) or found.note) and ((q >= 0) & (q <= 1)).all()
        assert all(isinstance(t, torch.Tensor) and bool(t.isfinite().all()) for t in found.state.values())
        assert isinstance(found.note, str) and all(isinstance(n, int) for n in found.yields.values())


def weights_of_a_source(place, draw):
    sound = safetensors.torch.save(torch.nn.Linear(3, 2).state_dict())
    hostile = place / "hostile.safetensors"
    hostile.write_bytes(draw(spoilt(sound) | repacked(sound)))
    found = documented(lambda: Given.of(str(hostile)), UserError, naming=hostile)
    if found is not None:
        model = documented(lambda: found.fitted(torch.nn.Linear(3, 2), "linear"), UserError, naming=hostile)
        assert model is None or all(bool(value.isfinite().all()) for value in model.state_dict().values())


def results_of_a_run(place, draw):
    folder = place / "run"
    file = folder / draw(st.sampled_from(["scores.csv", "metrics.json", "manifest.json"]))
    sound = file.read_bytes()
    if file.suffix == ".csv":
        content = draw(spoilt(sound) | resaid(sound) | resaid(sound))
    else:
        content = draw(spoilt(sound)) if draw(st.integers(0, 3)) == 0 else as_json(draw, json.loads(sound))
    file.write_bytes(content)
    try:
        if file.suffix == ".csv":
            documented(lambda: read_scores(file), UserError, naming=file)
        run = documented(lambda: load(folder), UserError, naming=folder)
        if run is not None:  # then it can be compared, too
            table = comparison([run])
            table.to_csv().encode()
            for shown in tables.comparison_tables(table):
                (tables.markdown(shown) + tables.latex(shown, "", "")).encode()
            assert run.identity()["models"].isascii()
    finally:
        file.write_bytes(sound)


def stored_artefact(place, draw):
    store, spec = Store(place / "store"), Toy(1.0)
    folder = store.path(spec)
    sound = {name: (folder / name).read_bytes() for name in (RECORD, PAYLOAD)}
    record = json.loads(sound[RECORD])
    match draw(st.sampled_from(["record", "signed record", "payload", "signed payload"])):
        case "record":
            hostile = {RECORD: draw(spoilt(sound[RECORD])) if draw(st.booleans()) else as_json(draw, record)}
        case "signed record":
            hostile = {RECORD: signed(draw(altered(record)))}
        case "payload":
            hostile = {PAYLOAD: draw(spoilt(sound[PAYLOAD]) | repacked(sound[PAYLOAD]))}
        case _:
            content = draw(spoilt(sound[PAYLOAD]) | repacked(sound[PAYLOAD]))
            digest = hashlib.sha256(content).hexdigest()
            hostile = {PAYLOAD: content, RECORD: signed(record | {"bytes": len(content), "sha256": digest})}
    for name, content in hostile.items():
        (folder / name).write_bytes(content)
    try:
        artefact = documented(lambda: store.load(spec), DamagedError, UserError, naming=store.root)
        facts = documented(lambda: store.facts(spec), DamagedError, UserError, naming=store.root)
        trouble = documented(lambda: store.verify(spec), UserError, naming=store.root)
        assert facts is None or isinstance(facts, dict)
        if artefact is None:
            assert trouble is None or ("set aside" in trouble and not store.has(spec))
        else:
            assert trouble is None and artefact.facts == facts
    finally:
        shutil.rmtree(store.root / "damaged", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        for name, content in sound.items():
            (folder / name).write_bytes(content)


@settings(derandomize=True, max_examples=30, **SHARED)  # each composes a configuration
@given(data=st.data())
def test_a_case_of_a_hostile_run_is_refused_or_sound(place, data):
    folder = place / "case"
    folder.mkdir(exist_ok=True)
    for name in ("scores.csv", "metrics.json", "manifest.json"):
        shutil.copy(place / "run" / name, folder)
    labels = torch.arange(100) % 3
    write_fingerprint(
        Fingerprint(torch.full((100, 3, 8, 8), 0.5), {"labels": labels}), folder / "fingerprint.safetensors"
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    sound = {"name": "ipguard", "_target_": "os.abort", "steps": 3, "margin": 5.0, "lr": 0.1}
    manifest |= {
        "config": {"method": data.draw(st.just(sound) | altered(sound))},
        "outputs": data.draw(st.just(3) | VALUES),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    case = documented(lambda: fb.case(folder), UserError, naming=folder)
    if case is not None:
        assert type(case.method).__name__ == "IPGuard"
        verdict = documented(lambda: case.verdict(labels), UserError, naming="answers")  # 1 or 2 classes are too few
        assert verdict.score == 1 if verdict else case.outputs < 3
    assert case is not None or manifest["config"]["method"] != sound or manifest["outputs"] != 3


def signed(record) -> bytes:
    """Return a record with the checksum that belongs to it, as a stranger would write it."""
    if isinstance(record, dict):
        record.pop("record_sha256", None)
        record = record | {"record_sha256": _checksum(record)}
    return json.dumps(record).encode()


PROPERTIES = pytest.mark.parametrize(
    "holds", [fingerprint_file, weights_of_a_source, results_of_a_run, stored_artefact]
)


@PROPERTIES
@QUICK
@given(data=st.data())
def test_hostile_files_end_in_a_documented_error(holds, place, data):
    holds(place, data.draw)


@pytest.mark.slow
@PROPERTIES
@LONG
@given(data=st.data())
def test_hostile_files_end_in_a_documented_error_at_length(holds, place, data):
    holds(place, data.draw)


def test_a_fingerprint_comes_back(tmp_path):
    file = tmp_path / "f.safetensors"
    few = Fingerprint(torch.rand(2, 3, 4, 4), {"labels": torch.tensor([1, 0])}, {"tried": 9}, note="only 2")
    none = Fingerprint(torch.empty(0, 3, 4, 4), {}, note="none was found")
    for sent in (few, none):
        write_fingerprint(sent, file)
        back = fb.read_fingerprint(str(file))
        assert torch.equal(back.queries, sent.queries) and back.state.keys() == sent.state.keys()
        assert all(torch.equal(back.state[name], tensor) for name, tensor in sent.state.items())
        assert (back.yields, back.note) == (sent.yields, sent.note)
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode  # as the umask has it
    safetensors.torch.save_file(dict(few.tensors()), file)  # as runs wrote it before there was metadata
    assert torch.equal(fb.read_fingerprint(file).queries, few.queries) and not fb.read_fingerprint(file).note


QUERIES, LABELS = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("tensors", "said", "complaint"),
    [
        ({"labels": LABELS}, {}, "expected a tensor named queries; got 'labels'"),
        ({"queries": QUERIES.double()}, {}, "expected float32 (n, c, h, w)"),
        ({"queries": QUERIES[0]}, {}, "got torch.float32 (1, 2, 2)"),
        ({"queries": QUERIES[..., :0]}, {}, "got torch.float32 (2, 1, 2, 0)"),
        ({"queries": QUERIES * 3}, {}, "expected values in [0, 1], got 1.5 to 1.5"),
        ({"queries": QUERIES * torch.nan}, {}, "expected values in [0, 1], got nan"),
        ({"queries": QUERIES, "labels": LABELS[:1]}, {}, "labels: expected int64 from 0, one a query"),
        ({"queries": QUERIES, "labels": LABELS - 1}, {}, "labels: expected int64 from 0"),
        ({"queries": QUERIES, "labels": LABELS.float()}, {}, "labels: expected int64 from 0"),
        ({"queries": QUERIES, "w": torch.tensor([torch.inf])}, {}, "w: expected finite numbers"),
        ({"queries": QUERIES, "w": torch.zeros(1).to(torch.float8_e4m3fn)}, {}, "got torch.float8_e4m3fn"),
        ({"queries": QUERIES, "w": torch.zeros(1, dtype=torch.complex64)}, {}, "got torch.complex64"),
        ({"queries": QUERIES}, {"schema": 7}, "expected schema 1; got {'schema': 7"),
        ({"queries": QUERIES}, {"yields": {"tried": -1}}, "yields: expected whole numbers"),
        ({"queries": QUERIES}, {"note": 3}, "note: expected a text; got 3"),
    ],
)
def test_what_is_no_fingerprint_is_refused_in_one_line(tmp_path, tensors, said, complaint):
    file = tmp_path / "f.safetensors"
    safetensors.torch.save_file(tensors, file, {"fingerbench": json.dumps({"schema": 1, **said})})
    with pytest.raises(UserError) as error:
        fb.read_fingerprint(file)
    assert f"{file}: not a fingerprint (" in str(error.value) and complaint in str(error.value)
    assert "run the command of its folder again" in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("name", ["", "missing", "folder", "loop", "pipe", "empty"])
def test_a_fingerprint_that_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match=str(tmp_path / name)):
        fb.read_fingerprint(tmp_path / name)


# Two tensors that share bytes, and one that reaches beyond the file.
@pytest.mark.parametrize("ends", [[[0, 4], [0, 4]], [[0, 4], [2, 6]], [[0, 4], [4, 2**40]], [[4, 0], [4, 8]]])
def test_offsets_that_overlap_or_lead_outside_are_refused(ends):
    entries = {name: {"dtype": "F32", "shape": [1], "data_offsets": at} for name, at in zip("ab", ends, strict=True)}
    header = json.dumps(entries).encode()
    with pytest.raises(ValueError, match="no safetensors"):
        parse_tensors(struct.pack("<Q", len(header)) + header + bytes(8))


@pytest.mark.parametrize(
    "text", ["[NaN]", "-Infinity", "1e999", '{"a": 1, "a": 2}', "[" * 10**5, "9" * 5000, "'a'", ""]
)
def test_json_that_other_programs_would_read_otherwise_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text.encode())


def test_a_label_may_hold_any_sign_that_can_be_printed(tmp_path):
    write(tmp_path / "run", scores("$x_{$ [/b] <i> & 100%"))
    assert all(file.stat().st_size for file in report([tmp_path / "run"], tmp_path / "out").files)
    write(tmp_path / "bad", scores("\x1b[2J"))
    with pytest.raises(UserError, match=r"scores\.csv: expected texts without control characters"):
        load(tmp_path / "bad")


class Dropper:
    """What pickle makes of it is a file, `ran`."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (f"{self.folder}/ran",)


def test_a_checkpoint_with_code_in_it_is_refused_without_running_it(tmp_path):
    file = tmp_path / "key.pt"
    torch.save({"step": 1, "random": Dropper(tmp_path)}, file)
    images = Images(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(UserError, match="holds more than tensors and numbers; or delete it") as error:
        Sagan(width=1 / 32, steps=1, batch=2).train(images, 1, torch.Generator(), torch.device("cpu"), Checkpoint(file))
    assert str(error.value).isprintable() and not (tmp_path / "ran").exists()
    torch.load(file, weights_only=False)  # the trap works
    assert (tmp_path / "ran").exists()


def test_a_cifar_archive_with_code_in_it_is_refused_without_running_it(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Dropper(tmp_path)))
    with pytest.raises(UserError, match="found damaged data_batch_1"):  # torchvision compares the md5 sums first
        Cifar10(str(tmp_path)).load()
    assert not (tmp_path / "ran").exists()


SOURCES = [
    ROOT / "run.py",
    *(f for d in ("fingerbench", "methods", "experiments", "benchmarks") for f in ROOT.glob(f"{d}/**/*.py")),
]
OWN = {  # what is pickled here, and unpickled at once
    "fingerbench/pool.py": {"pickle.dumps"},  # for its own child
    "fingerbench/worker.py": {"pickle.loads", "torch.load"},
    "fingerbench/check.py": {"pickle.dumps", "pickle.loads"},  # does a method survive that?
}


def dangers(path):
    """Return the calls in a source file by which a file could run code."""
    tree = ast.parse(path.read_text())
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} & {"marshal", "shelve", "dill"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "yaml", "torch", "numpy"):
            found |= {f"{node.module}.{a.name}" for a in node.names} & {"pickle.load", "pickle.loads", "torch.load"}
        if not isinstance(node, ast.Call):
            continue
        name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        last = name.rpartition(".")[2]
        found |= {name} if name in ("eval", "exec", "compile", "__import__") else set()
        found |= (
            {name} if name.startswith(("pickle.", "marshal.", "shelve.", "dill.", "joblib.", "cloudpickle.")) else set()
        )
        found |= (
            {name} if last in ("read_pickle", "Unpickler", "unsafe_load", "full_load") or name == "yaml.load" else set()
        )
        found |= {name} if words.get("allow_pickle", "False") != "False" else set()
        found |= {name} if name == "torch.load" and words.get("weights_only") != "True" else set()
        found |= {name} if name.startswith(("torch.jit.load", "torch.hub.", "torch.package.")) else set()
    return found


def test_nothing_reads_a_file_with_pickle():
    assert len(SOURCES) > 80
    found = {str(path.relative_to(ROOT)): dangers(path) for path in SOURCES}
    assert {path: calls for path, calls in found.items() if calls} == OWN


@pytest.mark.parametrize(
    "line",
    ["torch.load(f)", "pickle.load(f)", "eval(text)", "np.load(f, allow_pickle=True)", "yaml.unsafe_load(f)",
     "from pickle import loads", "torch.load(f, weights_only=False)", "pd.read_pickle(f)", "yaml.load(f, L)"],
)  # fmt: skip
def test_the_search_for_pickle_finds_it(tmp_path, line):
    (tmp_path / "a.py").write_text(line)
    assert dangers(tmp_path / "a.py")
