"""One run: build what is missing, score every suspect, write the tables, figures and the manifest of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from torch import Tensor

from fingerbench.bench import Bench
from fingerbench.errors import writing
from fingerbench.evaluate import gates, plots, tables
from fingerbench.evaluate.curves import aruc_figure, caption_of
from fingerbench.evaluate.images import query_grid
from fingerbench.evaluate.metrics import DIGITS, SCHEMA, summary
from fingerbench.evaluate.specs import fingerprint_of, judge_of, summary_of
from fingerbench.files import write_json
from fingerbench.fingerprints import write_fingerprint
from fingerbench.manifest import MANIFEST, manifest
from fingerbench.plugins import code_of
from fingerbench.records import Fingerprint, Suspect
from fingerbench.store import Artefact, Spec

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

NOT_ALWAYS = ("losses.csv", "figures/queries.png", "figures/gan.png")  # of the files of a run


def plan(bench: Bench) -> list[Spec]:
    """Return everything that a run needs of the store: see `Bench.plan` and `gates.plan`."""
    return [*bench.plan(), *gates.plan(bench)]


def run(bench: Bench, folder: Path) -> pd.DataFrame:
    """Evaluate the selected method on the selected suspects and write everything into `folder`.

    Files: gates.csv, scores.csv, models.csv, metrics.json, manifest.json, fingerprint.safetensors,
    figures/aruc.{png,pdf}, figures/queries.png, figures/gan.png where the method uses a GAN, and losses.csv where the
    store has losses. Returns the scores.

    Raises:
        UserError: the zoo breaks a gate; see `gates.judge`.
    """
    began = time.perf_counter()
    bench.build(plan(bench))
    built = time.perf_counter()
    gates.judge(bench, folder)
    log.info("%s", summary_of(bench.store.facts(bench.fingerprint_spec)))
    frame = scores(bench)
    metrics, fid = measures(bench, frame), bench.fid_spec()
    fingerprint = fingerprint_of(bench.store.load(bench.fingerprint_spec))
    with writing(folder, "hydra.run.dir"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in NOT_ALWAYS:  # those of an earlier run here would pass for this one's
            (folder / name).unlink(missing_ok=True)
        frame.to_csv(folder / "scores.csv", index=False)
        models(bench).to_csv(folder / "models.csv", index=False)
        curves = losses(bench)
        if len(curves):
            curves.to_csv(folder / "losses.csv", index=False)
        write_json(folder / "metrics.json", metrics)
        write_fingerprint(fingerprint, folder / "fingerprint.safetensors")
        draw(frame, fingerprint, folder / "figures", bench.settings.zoo.seed)
        if fid:
            draw_gan(bench.store.load(fid), folder / "figures")
        made, peaks = _made(bench)
        seconds = {"build": built - began, "score": time.perf_counter() - built, "made": made}
        write_json(folder / MANIFEST, describe(bench, seconds=seconds, peak_mib=peaks))
    title = f"{tables.title(bench.settings.label, bench.settings.evasion.name)} on {bench.settings.data.name}"
    tables.show(tables.results(metrics, title), width=100)
    log.info("files and figures: %s", folder)
    return frame


def measures(bench: Bench, frame: pd.DataFrame) -> dict[str, Any]:
    """Return what metrics.json says of the scores `frame`: see `metrics.summary`, and facts of the store."""
    facts = bench.store.facts
    measured = {"schema": SCHEMA} | summary(frame)
    measured |= {"fingerprint": facts(bench.fingerprint_spec), "cost": cost(bench)}
    if bench.evasion_spec:
        measured["evasion"] = facts(bench.evasion_spec)
    if fid := bench.fid_spec():
        measured["gan"] = {name: fact for name, fact in facts(fid).items() if name not in ("seconds", "peak_mib")}
    return measured


def scores(bench: Bench) -> pd.DataFrame:
    """Return one row a suspect, from stored responses alone. See `Bench.scores` for the columns."""
    import pandas as pd

    fingerprint = fingerprint_of(bench.store.load(bench.fingerprint_spec))
    judge = judge_of(bench.settings.method.name, bench.method)
    raw = getattr(bench.method, "raw", judge)
    responses, measured = bench.responses(), bench.accuracies() or bench.models
    settings, quality = bench.settings, bench.data.task.quality_name
    rows = []
    for suspect in bench.suspects:
        answered = bench.store.load(responses[suspect.name]).tensors
        row = _identity(bench, suspect)
        row["score"] = _mean(judge, fingerprint, answered["answers"])
        row["score_8bit"] = _mean(judge, fingerprint, answered["answers_8bit"])
        row["raw"] = _mean(raw, fingerprint, answered["answers"])
        row["accuracy"] = bench.store.facts(measured[suspect.name])[quality]
        row |= {"queries": len(fingerprint), "evasion": settings.evasion.name}
        rows.append(row | {"seed": settings.seed, "profile": settings.profile})
    return pd.DataFrame(rows)


def _mean(judge: Callable[[Fingerprint, Tensor], float], fingerprint: Fingerprint, answers: Tensor) -> float:
    """Return the mean judgement over answers (draws, n, ...), 0 where n is 0: who asks nothing, accuses nobody."""
    if not len(fingerprint):
        return 0.0
    if len(answers) == 1:
        return judge(fingerprint, answers[0])
    total = sum(judge(fingerprint, drawn) for drawn in answers)
    return round(total / len(answers), DIGITS)


def _identity(bench: Bench, suspect: Suspect) -> dict[str, Any]:
    return {
        "method": bench.settings.label,
        "source": f"{bench.settings.data.name}/{bench.settings.zoo.source}",
        "suspect": suspect.name,
        "family": suspect.family,
        "attack": suspect.attack,
        "variant": suspect.variant,
        "arch": suspect.architecture,
        "pirated": suspect.pirated,
        "mirror_of": suspect.mirror_of,
    }


def models(bench: Bench) -> pd.DataFrame:
    """Return the record of every selected model and surrogate: accuracy or R2, agreement with its parent, ..."""
    import pandas as pd

    return pd.DataFrame([{k: v for k, v in facts.items() if k != "losses"} for facts in _facts(bench)])


def losses(bench: Bench) -> pd.DataFrame:
    """Return a row an epoch of every selected model and surrogate: name, epoch (from 1), loss (mean over the epoch).

    A model of an older store has none.
    """
    import pandas as pd

    rows = [
        (facts["name"], epoch, loss)
        for facts in _facts(bench)
        for epoch, loss in enumerate(facts.get("losses") or [], 1)
    ]
    return pd.DataFrame(rows, columns=["name", "epoch", "loss"])


def _facts(bench: Bench) -> list[dict[str, Any]]:
    """Return what the store knows about every selected model and surrogate, with its key."""
    spec = bench.fingerprint_spec
    every = {s.key: s for s in [*bench.models.values(), *spec.positives, *spec.negatives]}
    return [{**bench.store.facts(s), "key": key} for key, s in every.items()]


def draw(frame: pd.DataFrame, fingerprint: Fingerprint, folder: Path, zoo: int = 0) -> None:
    """Draw figures/aruc and, if there are queries, figures/queries; zoo: the seed of the zoo."""
    caption = caption_of(frame, zoo)
    plots.save(aruc_figure(frame, zoo), folder / "aruc")
    if not len(fingerprint):
        return
    labels = fingerprint.state["labels"].tolist() if "labels" in fingerprint.state else None
    told = f"{caption}; below each, the label expected of a stolen model" if labels else caption
    grid = query_grid(fingerprint.queries.numpy(), labels=labels, caption=told)
    plots.save(grid, folder / "queries", formats=("png",))


def draw_gan(fid: Artefact, folder: Path) -> None:
    """Draw figures/gan."""
    plots.save(query_grid(fid.tensors["samples"].numpy(), caption=gan_caption(fid)), folder / "gan", ("png",))


def gan_caption(fid: Artefact) -> str:
    """Return the line below samples of a GAN, ten in a row: whether each row is a class, and its FID."""
    facts = fid.facts
    rows = "a row a class" if facts["conditional"] else "unconditional"
    return f"{facts['name']}, {rows}; FID {facts['fid']:.3g} with the {facts['features']}"


def describe(bench: Bench, **measured: Any) -> dict[str, Any]:
    """Return the manifest of the run, with what was measured in it."""
    spec, fid = bench.fingerprint_spec, bench.fid_spec()
    keys: dict[str, Any] = {name: model.key for name, model in bench.models.items()}
    return manifest(
        words=list(bench.overrides),
        config=OmegaConf.to_container(bench.settings, resolve=True),
        seeds={"method": bench.settings.seed, "zoo": bench.settings.zoo.seed},
        data_sha256=spec.data,
        outputs=spec.classes,
        method={"version": getattr(bench.method, "version", None), "code": code_of([bench.method])},
        **measured,
        store={
            "root": bench.settings.store,
            "setting": bench.setting,
            "fingerprint": spec.key,
            "gan": spec.gan.key if spec.gan else None,
            "fid": fid.key if fid else None,
            "surrogates": {s.name: s.key for s in [*spec.positives, *spec.negatives]},
            "suspects": keys,
        },
    )


def cost(bench: Bench) -> dict[str, float | None]:
    """Return what the fingerprint cost its owner and asks of a suspect.

    Keys: seconds of extraction; preparation_seconds of training the surrogates and the GAN that it needs; peak_mib of
    memory during extraction; surrogates trained for it; queries sent to each suspect.
    """
    spec = bench.fingerprint_spec
    facts = bench.store.facts(spec)
    prepared = {s.key: s for s in spec.needs() if s != spec.source}.values()
    return {
        "seconds": facts["seconds"],
        "preparation_seconds": sum(bench.store.facts(s)["seconds"] for s in prepared),
        **{name: facts.get(name) for name in ("peak_mib", "surrogates", "queries")},  # older stores lack some,
    }


def _made(bench: Bench) -> tuple[dict[Any, float], dict[Any, float]]:
    """Return what artefacts of each kind took when they were made, now or earlier: all seconds, and the most MiB.

    A kind has no MiB where no artefact says, as in a store of an older version.
    """
    import pandas as pd

    spec = bench.fingerprint_spec
    some = [made for made in (bench.evasion_spec, bench.fid_spec()) if made]
    every = {s.key: s for s in [spec, *spec.needs(), *some, *bench.models.values()]}.values()
    columns = ["kind", "seconds", "peak_mib"]
    took = pd.DataFrame([{**bench.store.facts(s), "kind": s.kind} for s in every], columns=columns)
    by_kind = took.astype({"peak_mib": float}).groupby("kind", sort=False)
    return by_kind["seconds"].sum().to_dict(), by_kind["peak_mib"].max().dropna().to_dict()
