"""A case against one suspect outside the zoo: the queries of a run, the answers given to them, what those are worth."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional as F

from fingerbench import config, files, status
from fingerbench.api import Fingerprinter
from fingerbench.errors import LONGEST, UserError, is_whole, one_line, require, require_empty, writing
from fingerbench.evaluate import gates, metrics, report
from fingerbench.fingerprints import read_fingerprint
from fingerbench.manifest import MANIFEST
from fingerbench.ops import eight_bit
from fingerbench.plugins import code_of
from fingerbench.records import Fingerprint
from fingerbench.untrusted import content

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

ANSWERS = "answers.csv"
QUERY = "query"  # its column of file names
LABEL = "label"  # that of a method with access to labels; one with access to outputs has columns 0, 1, ...
SMALLEST = 8  # pixels; what is smaller is no image, such as the features of a regression
MOST = 100_000  # outputs of a model; a stranger's file may say any number
ROUNDING = 0.0051  # of a probability, as an API that answers with two decimals does it


@dataclass(frozen=True)
class Verdict:
    """What the answers of a suspect are worth, beside those of the run's own suspects to the same 8-bit queries."""

    method: str
    queries: int
    score: float
    independent: tuple[float, ...]  # scores of the independent suspects
    stolen: tuple[float, ...]  # of the stolen ones
    origins: tuple[float, ...]  # for each network that those of other data descend from, their highest score
    constant: float | None  # the highest score of who gives the same class to all queries; None in a regression
    zoo: str = ""  # which gates those suspects break, if any
    controls: tuple[float, ...] = ()  # scores of models outside the zoo that are known to be independent
    same_half: tuple[float, ...] = ()  # of independent suspects that were trained on the source's half of the images
    given: bool = False  # by `zoo.weights`: the owner alone knows which images the source saw

    @property
    def as_high(self) -> int:
        """How many independent suspects score as high."""
        return self._as_high(self.independent)

    @property
    def lower(self) -> int:
        """How many stolen suspects score lower."""
        return sum(score < self.score for score in self.stolen)

    @property
    def p(self) -> float:
        """How likely, at most, an independent model scores as high, if it is one more like the controls.

        (1 + controls as high) / (1 + controls), a permutation p-value, which is never 0 (Phipson and Smyth 2010).
        Without controls the origins are taken: what descends from one network has one voice, as its answers are alike,
        and the suspect is of an origin of its own. Where the run has networks of the source's half, the p of these if
        it is higher. Nothing is pooled: the suspect may be like one kind and not like another.
        """
        return self._p(self._peers)

    def _p(self, peers: Sequence[float]) -> float:
        return (1 + self._as_high(peers)) / (1 + len(peers))

    @property
    def _peers(self) -> tuple[float, ...]:
        """The kind that speaks most for the suspect, of those that there are."""
        kinds = [self.controls] if self.controls else [kind for kind in (self.origins, self.same_half) if kind]
        return max(kinds, key=self._p, default=())

    def _as_high(self, scores: Sequence[float]) -> int:
        return sum(score >= self.score for score in scores)

    def __str__(self) -> str:
        same = "" if self.constant is None else f"; who always says the same class has up to {self.constant:.5g}"
        descent = (
            f"{self._as_high(self.origins)} of the {len(self.origins)} networks they descend from have one that does"
        )
        controls = (
            f"{self._as_high(self.controls)} of {len(self.controls)} controls score as high{_highest(self.controls)}"
        )
        least = "" if self._as_high(self._peers) else f"; {len(self._peers)} cannot say less"
        lines = [
            f"{self.method}: score {self.score:.5g} on {self.queries} queries{same}",
            f"{self.as_high} of {len(self.independent)} independent suspects score as high{_highest(self.independent)}",
            descent,
            self._seen(),
            f"{self.lower} of {len(self.stolen)} stolen ones score lower",
            *([controls] if self.controls else []),
            f"p = {self.p:.3g}: so likely, at most, an independent model scores as high, if it is like "
            f"{'the controls' if self.controls else 'those of the run'}{least}",
            *([f"{self.zoo}; so its models say less about others"] if self.zoo else []),
        ]
        return "\n".join(lines)

    def _seen(self) -> str:
        """Return what is known of the images that the source and the independent suspects saw."""
        counted = f"{self._as_high(self.same_half)} of the {len(self.same_half)}"
        others = "may score like a thief: attack=[all,same-half] asks some"
        if self.given:
            here = f"{counted} that were trained on half A do" if self.same_half else "none was trained on half A"
            lacking = "" if self.same_half else f"; one that was {others}"
            return f"{here}{lacking}; what else the given source saw is not known here"
        if self.same_half:
            return f"{counted} that saw the source's half of the images do"
        return f"none of them saw the source's images; one that did {others}"


def _highest(scores: Sequence[float]) -> str:
    return f"; the highest {max(scores):.5g}" if scores else ""


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """The queries of a finished run, and its suspects' scores to compare with."""

    method: Fingerprinter
    fingerprint: Fingerprint
    scores: DataFrame  # of the run, as `report.read_scores` gives them
    outputs: int  # of a model: classes
    zoo: str = ""  # which gates the run's suspects break, if any
    given: bool = False  # the run's source, by `zoo.weights`

    @property
    def queries(self) -> Tensor:
        """What to ask: float32 (n, c, h, w), multiples of 1/255 in [0, 1], as images of 8 bits a value hold them."""
        return eight_bit(self.fingerprint.queries)

    def verdict(self, answers: Any, controls: Sequence[Any] = ()) -> Verdict:
        """Return what the answers to `queries`, in their order, are worth.

        answers: a tensor, an array or a list; labels (n,), whole numbers from 0, or what the API says (n, outputs),
        probabilities or the values of a regression, by the access of the method.
        controls: such answers of others, each known to be independent of the source and of the others.

        Raises:
            UserError: they are not such answers.
        """
        every = {"answers": answers} | {f"controls[{i}]": control for i, control in enumerate(controls)}
        responses = {what: self._responses(_tensor(one, what), what) for what, one in every.items()}
        warn_alike(responses)
        if (responses["answers"] == responses["answers"][:1]).all() and len(self.fingerprint) > 1:
            log.warning("answers: all %d are the same; does the API see the images?", len(self.fingerprint))
        score, *known = map(self._score, responses.values())
        ranked = self.scores.assign(score_8bit=self.scores["score_8bit"].round(metrics.DIGITS))
        sides = metrics.sides(ranked, "score_8bit")
        highest = ranked["score_8bit"].groupby(metrics.origins(ranked)).max().astype(float)
        same = highest.index.str.startswith("same-half/")
        label = str(self.scores["method"].iloc[0])
        constant = max(map(self._score, self._constants()), default=None)
        stolen, independent, others, same_half = (
            tuple(scores.tolist()) for scores in (*sides, highest[~same], highest[same])
        )
        about = (constant, self.zoo, tuple(known), same_half, self.given)
        return Verdict(label, len(self.fingerprint), score, independent, stolen, others, *about)

    def _score(self, responses: Tensor) -> float:
        try:
            return round(self.method.similarity(self.fingerprint, responses), metrics.DIGITS)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:  # a state that is not this method's
            raise UserError(f"the fingerprint is none of this method ({one_line(error)}); run it again") from error

    def _constants(self) -> Iterator[Tensor]:
        """Yield the responses of who gives the same class to all queries, for each class; none in a regression."""
        labelled = self.method.access == "label"
        for label in range(self.outputs) if labelled or "labels" in self.fingerprint.state else ():
            labels = torch.full((len(self.fingerprint),), label)
            yield labels if labelled else F.one_hot(labels, self.outputs).float()

    def _responses(self, answers: Tensor, what: str) -> Tensor:
        n, labelled = len(self.fingerprint), self.method.access == "label"
        shape, asked = ((n,), "the label") if labelled else ((n, self.outputs), "what the API says, not a label alone,")
        require(answers.shape == shape, what, f"the shape {shape}, {asked} of each query", tuple(answers.shape))
        self.require_sound(answers.double(), [f"{what}[{i}]" for i in range(n)])
        return answers.long() if labelled else answers.float()

    def require_sound(self, answers: Tensor, rows: Sequence[str]) -> None:
        """Raise a UserError that names the first of `rows`, a name a query, whose answer no model of the run gives.

        answers: float64 (n,) or (n, outputs), by the access of the method.
        """
        expected, odd = "finite numbers", ~answers.reshape(len(rows), -1).isfinite().all(1)
        if not odd.any() and self.method.access == "label":
            expected = f"labels, whole numbers from 0 to {self.outputs - 1}"
            odd = (answers != answers.round()) | (answers < 0) | (answers >= self.outputs)
        elif not odd.any() and "labels" in self.fingerprint.state:  # else a regression
            expected = "probabilities that sum to 1 (the softmax of logits)"
            outside = (answers - 0.5).abs().amax(1) > 0.5 + ROUNDING
            odd = outside | ((answers.sum(1) - 1).abs() > ROUNDING * self.outputs)
        if odd.any():
            first = int(odd.nonzero()[0])
            got = ", ".join(f"{number:g}" for number in answers[first].reshape(-1).tolist())
            raise UserError(f"{rows[first]}: expected {expected}; got {_short(got)}")


def warn_alike(answers: Mapping[str, Tensor]) -> None:
    """Warn of two that hold the same answers, as two models may to few queries: one must not count twice in p."""
    for one, other in itertools.combinations(answers, 2):
        if torch.equal(answers[one], answers[other]):
            log.warning(
                "%s and %s hold the same answers; if one model gave them, leave one out: p is too low", one, other
            )


def _tensor(answers: Any, what: str) -> Tensor:
    if isinstance(answers, list | tuple):  # such as of one tensor an image, on a GPU or with a gradient
        answers = [one.detach().cpu() if isinstance(one, Tensor) else one for one in answers]
    try:
        found = answers.detach().cpu() if isinstance(answers, Tensor) else torch.from_numpy(np.array(answers))
    except (TypeError, ValueError, RuntimeError) as error:  # texts; rows of several lengths
        raise UserError(f"{what}: expected a number, or a row of them, for each query ({one_line(error)})") from error
    real = not found.is_complex() and found.dtype != torch.bool
    require(real, what, "numbers", str(found.dtype))
    return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def case(run: Path | str, *words: str) -> Case:
    """Return the case that a finished run can make against anyone, from the files in its folder alone.

    words: overrides that find a method outside this repository, such as "hydra.searchpath=[...]". Nothing that the
    files name is called: the method is the one of that name here, with the numbers that the manifest has.

    Raises:
        UserError: no run, one that is not done, a damaged one, one under an evasion, or one without queries.
    """
    folder = Path(run)
    report.missing([folder], status.LOST_S)
    runs = report.find([folder])
    several = f"{len(runs)} below it; give one, such as {runs[0]}"
    require(folder.resolve() in runs, str(folder), "the folder of one run", several)
    require(config.searched(words) == [*words], str(folder), "no words but hydra.searchpath=[...]", " ".join(words))
    found = report.load(folder)
    evasion = found.scores["evasion"].iloc[0]
    require(evasion == "none", str(folder), "a run without evasion=, since the suspect has none of ours", evasion)
    fingerprint = read_fingerprint(folder / "fingerprint.safetensors")
    asked = int(found.scores["queries"].iloc[0])
    require(len(fingerprint) == asked, f"{folder}: fingerprint.safetensors", f"{asked} queries", len(fingerprint))
    require(asked > 0, str(folder), "a run whose method found queries", fingerprint.note)
    method, outputs, given = _judge(folder / MANIFEST, words)
    findings = gates.read(folder)
    zoo = "" if findings["holds"].all() else gates.complaint(findings)
    return Case(method, fingerprint, found.scores, outputs, zoo, given)


def _judge(path: Path, words: Sequence[str]) -> tuple[Fingerprinter, int, bool]:
    """Return, as its manifest says, the method of a run, the outputs of a model, and whether the source was given."""
    manifest = report.read_json(path)
    try:
        settings, outputs = dict(manifest["config"]["method"]), manifest.get("outputs")
        given = dict(manifest["config"].get("zoo", {})).get("weights") is not None
        name = str(settings["name"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: does not say which method it ran ({one_line(error)}); run it again") from error
    expected = "the number of outputs, as runs have it from now on: run its command again"
    require(is_whole(outputs) and 0 < outputs <= MOST, str(path), expected, outputs)
    try:
        method = _method(name, settings, words)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _require_same(path, name, method, manifest.get("method"))
    return method, outputs, given


def _require_same(path: Path, name: str, method: Fingerprinter, then: Any) -> None:
    """Refuse a method of another version than the run had, and warn of other code; older manifests have neither."""
    if not isinstance(then, dict):
        return
    had, has = then.get("version"), getattr(method, "version", None)
    if had != has:
        raise UserError(f"{path}: {name} has version {has} here, the run was made with {had}; run its command again")
    if any(dict(then.get("code") or {}).get(cls, digest) != digest for cls, digest in code_of([method]).items()):
        log.warning("%s: the code of %s is not what it was; if it scores otherwise now, run it again", path, name)


def _method(name: str, settings: Mapping[str, Any], words: Sequence[str]) -> Fingerprinter:
    require(re.fullmatch(r"[\w-]+", name) is not None, "method", "the name of a file in conf/method", name)
    if name not in config.options("method", words):
        raise UserError(
            f"its method, {name}, is not in conf/method; if it is of a folder of yours, add hydra.searchpath=[file://DIR]"
        )
    node = config.compose([*words, f"method={name}"]).method
    also = {field.name for field in fields(cast(Any, config.build(node)))}  # that its file may leave out
    _restore(node, {key: value for key, value in settings.items() if key in node or key in also})
    return cast(Fingerprinter, config.build(node))


def _restore(node: DictConfig, settings: Mapping[str, Any]) -> None:
    """Put plain settings into a node; what names code there, and which nodes within it there are, stays as it is."""
    for key, value in settings.items():
        if key.startswith("_"):
            continue
        if isinstance(value, dict) and isinstance(node.get(key), DictConfig):
            _restore(node[key], value)
        else:
            OmegaConf.update(node, key, _plain(key, value), force_add=True)


def _plain(key: str, value: Any) -> Any:
    """Return a setting that is a number, a text or lists of such; in YAML anything else could call what it names."""
    if isinstance(value, list):
        return [_plain(key, item) for item in value]
    sound = value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and "${" not in value)
    require(sound, key, "numbers and texts", value)
    return value


def write(case: Case, folder: Path) -> None:
    """Write the queries into `folder`, new or empty, as PNG images, and beside them ANSWERS, to be filled in.

    Raises:
        UserError: they are no images, or the folder has something in it.
    """
    import pandas as pd
    from PIL import Image

    _, c, h, w = case.queries.shape
    require(c in (1, 3) and min(h, w) >= SMALLEST, "queries", "images; from Python, fb.case(RUN).queries", (c, h, w))
    require_empty(folder, "--out")
    names = _names(case)
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in zip(names, _pixels(case), strict=True):
            file = io.BytesIO()
            Image.fromarray(image.squeeze(2) if c == 1 else image).save(file, "PNG")
            files.write(folder / name, file.getvalue())
        frame = pd.DataFrame({QUERY: names} | dict.fromkeys(_columns(case), ""))
        files.write(folder / ANSWERS, frame.to_csv(index=False).encode())


def _columns(case: Case) -> list[str]:
    return [LABEL] if case.method.access == "label" else [str(i) for i in range(case.outputs)]


def _pixels(case: Case) -> np.ndarray:
    return (case.queries * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _names(case: Case) -> list[str]:
    """Return a name an image, its number and part of its hash, so that answers to another run's are not taken."""
    digits = len(str(len(case.fingerprint) - 1))
    hashes = (hashlib.sha256(image.tobytes()).hexdigest()[:8] for image in _pixels(case))
    return [f"{i:0{digits}}-{digest}.png" for i, digest in enumerate(hashes)]


def read_answers(case: Case, path: Path) -> Tensor:
    """Read an ANSWERS that was filled in: a row a query, in any order; other columns than those of `write` are ignored.

    Raises:
        UserError: it is no such table, it is of another run, or an answer is missing or none that a model gives.
    """
    import pandas as pd

    try:
        data = content(path)
        head = data.split(b"\n", 1)[0]
        others = (sign for sign in (";", "\t") if sign.encode() in head and b"," not in head)
        separator = next(others, ",")  # as spreadsheets write it in some countries
        frame = pd.read_csv(io.BytesIO(data), sep=separator, dtype=str, keep_default_na=False, index_col=False)
        frame.columns = frame.columns.str.strip().str.lower()
        frame = frame.set_index(frame[QUERY].str.strip()).drop(columns=QUERY)
        if separator != ",":
            frame = frame.replace(",", ".", regex=True)  # where it is between columns, a comma is the decimal point
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the {ANSWERS} of `queries`, filled in") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8, got another encoding; save it as CSV in UTF-8") from error
    except (ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: no table ({one_line(error)}); give the {ANSWERS} of `queries`, filled in") from error
    names, columns = _names(case), _columns(case)
    lacking = [name for name in names if name not in frame.index]
    if lacking:
        hint = "are they answers to another run?" if len(lacking) == len(names) else "fill them in"
        raise UserError(f"{path}: no row for {len(lacking)} of {len(names)} queries, such as {lacking[0]}; {hint}")
    twice = frame.index[frame.index.duplicated() & frame.index.isin(names)]
    require(not len(twice), str(path), "one row a query", f"several for {', '.join(twice[:1])}")
    named = _short(", ".join(columns))
    require(set(columns) <= set(frame.columns), str(path), f"columns {named}", _short(", ".join(frame.columns)))
    cells = frame.loc[names, columns]
    numbers = cells.apply(pd.to_numeric, errors="coerce")
    odd = numbers.isna().any(axis=1)
    if odd.any():
        row = cells[odd].iloc[0]
        got = one_line(ValueError(", ".join(filter(None, row)) or "nothing"))
        hint = "classes are numbers from 0" if columns == [LABEL] else "write 0.76, not 76%"
        raise UserError(f"{path}: {row.name}: expected a number in {named}; got {_short(got)}; {hint}")
    answers = torch.tensor(numbers.to_numpy(float))
    answers = answers[:, 0] if columns == [LABEL] else answers
    case.require_sound(answers, [f"{path}: {name}" for name in names])
    return answers
