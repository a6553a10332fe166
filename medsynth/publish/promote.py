"""From build/ to results/published/: the tables and figures of one chapter's run, if nothing speaks against it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medsynth.publish.check import run_problems
from medsynth.publish.plan import chapter_sources, find_chapter
from medsynth.results import chapter_of

KINDS = (".csv", ".json", ".svg")  # of a table or a figure, what is published
PROOFS = ("smoke",)  # profiles that only show that everything is connected


def promote(root: Path, chapter: str, name: str, folder: Path, *, replace: bool = False) -> list[str]:
    """Publish what `chapter` wrote below `folder` as part of the run results/published/`name`; the names of the tables.

    folder: that of a run (build/PROFILE), or the one in which the tables lie. replace: also where another commit's tables of
    these names are published. Raises ValueError with every reason against it, and then nothing has changed.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"run {name!r}: expected a name of small letters, digits and dashes, such as 'phantoms-full'")
    numbered = find_chapter(chapter, list(chapter_sources(root)))
    chapter = numbered.partition("_")[2]
    own = folder / "results" / numbered
    place = own if own.is_dir() else folder
    names = sorted({p.stem for p in place.glob("*") if p.suffix in KINDS and chapter_of(p.stem) == chapter})
    if not names:
        raise ValueError(f"{folder}: no tables of the chapter {chapter!r}; run it first (medsynth reproduce --only {chapter})")
    target = root / "results" / "published" / name
    reasons = list(_unfinished(folder, numbered, chapter)) if place == own else []
    target.parent.mkdir(parents=True, exist_ok=True)
    # the new run is put together beside the published one, on the same disk, and takes its place in one step
    with tempfile.TemporaryDirectory(dir=target.parents[1], prefix=".promote-") as temporary:
        made, old = Path(temporary) / name, Path(temporary) / "old"
        shutil.copytree(target, made) if target.exists() else made.mkdir()
        for table in names:
            reasons += _against(place / f"{table}.json", target / f"{table}.json", replace)
            for kind in KINDS:
                (made / f"{table}{kind}").unlink(missing_ok=True)
                if (place / f"{table}{kind}").exists():
                    shutil.copyfile(place / f"{table}{kind}", made / f"{table}{kind}")
        reasons += run_problems(made, Path(temporary))
        if reasons:
            raise ValueError("\n- ".join([f"{chapter} is not published as {name!r}:", *reasons]))
        if target.exists():
            target.rename(old)
        try:
            made.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    return [table for table in names if (target / f"{table}.csv").exists()]


def _unfinished(folder: Path, numbered: str, chapter: str) -> Iterator[str]:
    """A chapter that failed half-way leaves tables behind; what it wrote under another's name would be left out unseen."""
    executed = folder / "chapters" / f"{numbered}.ipynb"
    if not executed.exists() or executed.with_suffix(".failed.ipynb").exists():
        yield f"{executed.name}: has not run to its end; run it again"
    for csv in sorted((folder / "results" / numbered).glob("*.csv")):
        if chapter_of(csv.stem) != chapter:
            yield f"{csv.name}: a table of {chapter!r} is called {chapter!r} or '{chapter}-...'"


def _against(sidecar: Path, published: Path, replace: bool) -> Iterator[str]:
    """What a sidecar says against publishing; that files belong together, and show nobody, is the check's business."""
    if not sidecar.exists():
        return
    facts = _read(sidecar)
    name, commit = sidecar.stem, facts.get("commit")
    if not commit:
        yield f"{name}: made at an unknown commit; run it in a checkout"
    elif facts.get("dirty") is not False:
        yield f"{name}: made with changes that are not in commit {commit[:10]}; commit them and run it again"
    if {"", "unknown"} & {terms.strip() for terms in str(facts.get("data_licence", "")).split(";")}:
        yield f"{name}: the licence of its data is {facts.get('data_licence', '')!r}; expected terms that allow its publication"
    if facts.get("parameters", {}).get("profile") in PROOFS:
        yield f"{name}: profile {facts['parameters']['profile']!r}, whose numbers mean nothing; run a larger one"
    if published.exists() and not replace and (before := _read(published).get("commit")) != commit:
        yield f"{name}: published already, of commit {str(before)[:10]}; --replace puts this one in its place"


def _read(sidecar: Path) -> dict[str, Any]:
    return json.loads(sidecar.read_text())
