"""From build/ to results/published/: the tables and figures of one chapter's run, if nothing speaks against it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsynth.data.npz import KNOWN
from medsynth.publish.check import run_problems
from medsynth.publish.plan import chapter_sources, find_chapter
from medsynth.results import chapter_of, git, of_people, read_sidecar

KINDS = (".csv", ".json", ".svg")  # of a table or a figure, what is published
PROOFS = ("smoke",)  # profiles that only show that everything is connected
# terms of data whose numbers may be published; what any others allow is for a person to find out
TERMS = re.compile(r"generated|CC0( 1\.0)?|CC BY(-NC)?(-SA|-ND)?( \d\.\d)?")
NAMED_TERMS = {known.licence for known in KNOWN.values()} - {"by row"}
# what makes a published table another one -> what is said to differ
CONTENT = {"commit": "commit", "inputs": "data", "data_licence": "data", "parameters": "parameters", "csv_sha256": "rows"}
Sidecars = dict[str, dict[str, Any]]


def promote(root: Path, chapter: str, name: str, folder: Path, *, replace: bool = False) -> list[str]:
    """Publish what `chapter` wrote below `folder` as part of the run results/published/`name`; the names of the tables.

    folder: that of a run (build/PROFILE), or the one in which the tables lie. replace: also where others of these names are
    published; those of the chapter that this run does not have are removed then, and named as removed.
    Raises ValueError with every reason against it, and then nothing has changed.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"run {name!r}: expected a name of small letters, digits and dashes, such as 'phantoms-full'")
    numbered = find_chapter(chapter, list(chapter_sources(root)))
    chapter = numbered.partition("_")[2]
    own = folder / "results" / numbered
    place = own if own.is_dir() else folder
    names = _tables(place, chapter)
    if not names:
        raise ValueError(f"{folder}: no tables of the chapter {chapter!r}; run it first (medsynth reproduce --only {chapter})")
    target = root / "results" / "published" / name
    gone = sorted(set(_tables(target, chapter)) - set(names)) if replace else []
    new, before = _sidecars(place, names), _sidecars(target, _tables(target))
    reasons = [
        *(_unfinished(folder, numbered, chapter) if place == own else ()), *_against(root, new),
        *_another(name, new, {table: facts for table, facts in before.items() if table not in gone}, replace),
    ]  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    # the new run is put together beside the published one, on the same disk, and takes its place in one step
    with tempfile.TemporaryDirectory(dir=target.parents[1], prefix=".promote-") as temporary:
        made, old = Path(temporary) / name, Path(temporary) / "old"
        shutil.copytree(target, made, symlinks=True) if target.exists() else made.mkdir()
        # what is published already stays as it is, with its date and notes
        same = {table for table in set(new) & set(before) if not replace and not _differs(new[table], before[table])}
        for file in (made / f"{table}{kind}" for table in {*names, *gone} - same for kind in KINDS):
            file.unlink(missing_ok=True)
            if (place / file.name).exists():
                shutil.copyfile(place / file.name, file)
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
    return [table for table in names if (target / f"{table}.csv").exists()] + [f"{table} (removed)" for table in gone]


def _tables(folder: Path, chapter: str = "") -> list[str]:
    """Names of the tables and figures in a folder, or of those of one chapter."""
    return sorted({p.stem for p in folder.glob("*") if p.suffix in KINDS and chapter in ("", chapter_of(p.stem))})


def _sidecars(folder: Path, names: Iterable[str]) -> Sidecars:
    """Those that can be read; what is wrong with the others is the check's business."""
    found = {}
    for name in names:
        with suppress(ValueError, FileNotFoundError):
            found[name] = read_sidecar(folder / f"{name}.json")
    return found


def _unfinished(folder: Path, numbered: str, chapter: str) -> Iterator[str]:
    """A chapter that failed half-way leaves tables behind; what it wrote under another's name would be left out unseen."""
    executed = folder / "chapters" / f"{numbered}.ipynb"
    if not executed.exists() or executed.with_suffix(".failed.ipynb").exists():
        yield f"{executed.name}: has not run to its end; run it again"
    for csv in sorted((folder / "results" / numbered).glob("*.csv")):
        if chapter_of(csv.stem) != chapter:
            yield f"{csv.name}: a table of {chapter!r} is called {chapter!r} or '{chapter}-...'"


def _against(root: Path, sidecars: Sidecars) -> Iterator[str]:
    """What sidecars say against publishing; that files belong together, and show nobody, is the check's business."""
    whole = git(root, "rev-parse", "--is-shallow-repository") == "false"
    history = git(root, "rev-list", "HEAD") if whole else None
    profiles = [p.stem for p in sorted((root / "profiles").glob("*.yaml")) if p.stem not in PROOFS]
    for name, facts in sidecars.items():
        commit, terms, profile = facts.get("commit"), facts.get("data_licence"), facts.get("parameters", {}).get("profile")
        if not re.fullmatch("[0-9a-f]{40}", str(commit)):
            yield f"{name}: made at an unknown commit, {commit!r}; run it in a checkout"
        elif facts.get("dirty") is not False:
            yield f"{name}: made with changes that are not in commit {commit[:10]}; commit them and run it again"
        elif history is not None and commit not in history.split():
            yield f"{name}: made at commit {commit[:10]}, which HEAD does not descend from; merge it, or run it again here"
        if not all(TERMS.fullmatch(part) or part in NAMED_TERMS for part in re.split(r"\s*;\s*", str(terms).strip())):
            yield (
                f"{name}: the licence of its data is {terms!r}; expected 'generated' or terms that allow publication, such as "
                "'CC BY 4.0': name them in the column `license` of the data (data/README.md) and run it again"
            )
        if profile not in profiles:
            yield f"{name}: profile {profile!r}, whose numbers are not published; run it in one of {', '.join(profiles)}"


def _another(name: str, new: Sidecars, before: Sidecars, replace: bool) -> Iterator[str]:
    """What published tables have against the new ones: that they are others of the same name, or not of people as these are."""
    for table in () if replace else sorted(set(new) & set(before)):
        if differs := _differs(new[table], before[table]):
            at = str(before[table].get("commit"))[:10]
            yield f"{table}: published already, of commit {at}, with other {differs}; --replace puts this one in its place"
    others = [of_people(facts) for table, facts in before.items() if table not in new]
    ours = [of_people(facts) for facts in new.values()]
    if others and ours and any(others) != any(ours):
        kinds = ("people", "phantoms") if any(others) else ("phantoms", "people")
        yield f"{name}: holds tables of {kinds[0]}, and these are of {kinds[1]}; choose a run of its own (--name)"


def _differs(facts: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What makes a table another one than that published, in words; "" if it is the same."""
    said = [word for key, word in CONTENT.items() if facts.get(key) != before.get(key)]
    return " and ".join(dict.fromkeys(said + ["data"] * (of_people(facts) != of_people(before))))
