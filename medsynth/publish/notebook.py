"""Strict notebook runs: papermill executes, and nothing it would only warn about gets past."""

from __future__ import annotations

import ast
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import nbformat

from medsynth.language.words import did_you_mean
from medsynth.store.runs import atomic_path, cache_folder

Value = str | int | float | bool
KINDS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
SAY_EVERY = 10.0  # seconds between relayed lines of a running cell
# the kernel's own log lines are how training reports progress where there is no terminal
_SHOW_LOG = "import logging; logging.basicConfig(format='%(message)s'); logging.getLogger('medsynth').setLevel('INFO')"


class ChapterError(RuntimeError):
    """A cell of a chapter failed; the message says which and why."""


@dataclass(frozen=True)
class Parameter:
    """One declared parameter of a notebook: `name: kind = default`."""

    name: str
    kind: str
    default: Value


class Arms(NamedTuple):
    """A notebook from its first cell to the one with the id `until`, once for each value of a parameter."""

    until: str
    parameter: str
    values: str | list[str]  # a text names the field of the profile that holds them, e.g. "restoration.experiments"


def read_notebook(source: str | Path, until: str = "") -> nbformat.NotebookNode:
    """The notebook at `source`, or its beginning: all cells to the one with the id `until`.

    FileNotFoundError or ValueError naming the file if there is none that can be read, or no such cell.
    """
    source = Path(source)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such notebook")
    try:
        notebook = nbformat.read(source, as_version=4)
    except Exception as error:
        raise ValueError(f"{source}: not a notebook of format 4 ({error})") from error
    if until:
        ends = [k for k, cell in enumerate(notebook.cells, 1) if cell.get("id") == until]
        if len(ends) != 1:
            raise ValueError(f"{source}: {len(ends)} cells have the id {until!r}; expected exactly one")
        notebook.cells = notebook.cells[: ends[0]]
    return notebook


def declared_arms(source: str | Path) -> list[Arms]:
    """What a notebook can be begun as, in the order of its cells: a cell says `"arms": {PARAMETER: VALUES}` in its metadata.

    Raises ValueError where it says anything else, or where the parameter is not declared as a text.
    """
    cells, declared, found = read_notebook(source).cells, declared_parameters(source), []
    for cell in (cell for cell in cells if "arms" in cell.metadata):
        said = cell.metadata["arms"]
        (parameter, values), *more = said.items() if isinstance(said, dict) and said else [("", None)]
        texts = isinstance(values, str) or (isinstance(values, list) and all(isinstance(v, str) for v in values))
        if more or not texts or parameter not in declared or declared[parameter].kind != "str" or "id" not in cell:
            raise ValueError(
                f"{source}: a cell has arms {said!r}; expected a cell with an id and one declared parameter of type str, with "
                'a list of texts or a field of the profile, such as {"only": "restoration.experiments"}'
            )
        found.append(Arms(cell.id, parameter, values))
    return found


def tagged(cell: nbformat.NotebookNode, tag: str) -> bool:
    """Whether a cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def declared_parameters(source: str | Path) -> dict[str, Parameter]:
    """Parameters by name, from the one cell tagged `parameters`; ValueError if it holds anything but `name: type = literal`."""
    cells = [c for c in read_notebook(source).cells if tagged(c, "parameters")]
    if len(cells) != 1:
        raise ValueError(f"{source}: {len(cells)} cells are tagged 'parameters'; expected exactly one")
    found = {}
    for statement in ast.parse(cells[0].source).body:
        parameter = _parameter(statement)
        if parameter is None:
            raise ValueError(
                f"{source}: parameters cell holds `{ast.unparse(statement)}`; expected `name: type = literal` "
                f"with a type of {', '.join(KINDS)} and a literal of that type"
            )
        found[parameter.name] = parameter
    return found


def _parameter(statement: ast.stmt) -> Parameter | None:
    if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value):
        return None
    kind = ast.unparse(statement.annotation)
    with suppress(ValueError, TypeError):
        return Parameter(statement.target.id, kind, _typed(ast.literal_eval(statement.value), kind))
    return None


def _typed(value: object, kind: str) -> Value:
    if kind == "float" and type(value) is int:
        return float(value)
    if kind not in KINDS or type(value) is not KINDS[kind]:
        raise TypeError(kind)
    return value  # type: ignore[return-value]


def check_parameters(source: str | Path, given: Mapping[str, object]) -> dict[str, Value]:
    """The given parameters with their declared types; ValueError names an unknown one's closest valid name, or a wrong type."""
    declared = declared_parameters(source)
    checked = {}
    for name, value in given.items():
        if name not in declared:
            raise ValueError(f"{source}: no parameter {name!r}; {did_you_mean(name, declared)}")
        kind = declared[name].kind
        try:
            checked[name] = _typed(value, kind)
        except TypeError:
            raise ValueError(f"{source}: parameter {name!r} is {type(value).__name__} {value!r}; expected {kind}") from None
    return checked


def parse_parameters(source: str | Path, assignments: list[str]) -> dict[str, Value]:
    """`name=value` texts, as given on a command line, read by their declared types."""
    declared = declared_parameters(source)
    given: dict[str, object] = {}
    for text in assignments:
        name, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"parameter {text!r} has no '='; expected name=value")
        kind = declared[name].kind if name in declared else "str"
        given[name] = value
        if kind == "bool":
            given[name] = {"true": True, "false": False}.get(value.lower(), value)
        elif kind in ("int", "float"):
            with suppress(ValueError):
                given[name] = KINDS[kind](value)
    return check_parameters(source, given)


def run_notebook(
    source: str | Path,
    target: str | Path,
    parameters: Mapping[str, object],
    *,
    cwd: str | Path,
    name: str = "",
    until: str = "",
    log: Callable[[str], None] = print,
    remark: Callable[[], Mapping[str, Any]] = dict,
) -> Path:
    """Execute `source` with `parameters` in the working directory `cwd`; the executed copy appears at `target` when it is whole.

    name: what messages call it, by default as the file. until: the id of the last cell that is executed, by default the last.
    log: takes one line of progress at a time; `<target stem>.log` keeps everything that was printed.
    remark: called after the last cell; what it returns is kept as `medsynth` in the copy's metadata.
    Raises ValueError for parameters that the notebook does not declare, or a target among the sources, before anything runs;
    ChapterError if a cell fails, leaving what was executed as `<target stem>.failed.ipynb`.
    """
    source, target, cwd = Path(source), Path(target).resolve(), Path(cwd).resolve()
    checked = check_parameters(source, parameters)
    if target.parent == source.resolve().parent:
        raise ValueError(f"{target}: executed copies may not lie beside their sources; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    failed, partial = target.with_name(f"{target.stem}.failed.ipynb"), target.with_name(f".{target.stem}.partial.ipynb")
    progress = _Progress(name or source.stem, log, target.with_suffix(".log"))
    try:
        notebook = _execute(read_notebook(source, until), partial, checked, cwd, progress)
    except BaseException as error:
        if partial.exists():
            os.replace(partial, failed)
        if isinstance(error, Exception):
            raise ChapterError(_explain(progress, error, failed)) from error
        raise
    clean(notebook, {str(cwd): ".", **_private_paths(checked)}, remark())
    with atomic_path(target) as temporary:
        nbformat.write(notebook, temporary)
    partial.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    log(f"{progress.name}: done in {progress.seconds():.0f} s")
    return target


def _execute(
    notebook: nbformat.NotebookNode, partial: Path, parameters: dict[str, Value], cwd: Path, progress: _Progress
) -> nbformat.NotebookNode:
    import papermill
    from traitlets.config import Config

    # a kernel of this environment, even where the user has another one called python3
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    with TemporaryDirectory(prefix="kernel-") as place:
        # sockets in a folder of its own: ports are chosen before they are taken, and two that start at once may choose the same
        sockets = {"transport": "ipc", "connection_file": f"{place}/kernel.json"}
        return papermill.execute_notebook(
            notebook, str(partial), parameters=parameters, kernel_name="python3", language="python", cwd=str(cwd),
            progress_bar=False, stdout_file=progress, stderr_file=progress, on_cell_start=progress.start_cell(notebook),
            config=Config(ConnectionFileMixin=sockets),
            extra_arguments=[f"--IPKernelApp.exec_lines={_SHOW_LOG}", "--log-level=CRITICAL"],
        )  # fmt: skip


class _Progress:
    """Keeps all that is printed; says which cell runs, and its last line, not more often than every SAY_EVERY seconds."""

    def __init__(self, name: str, log: Callable[[str], None], transcript: Path) -> None:
        self.name, self.log, self.transcript, self.cell = name, log, transcript, 0
        transcript.write_text("")
        self._began, self._said = time.monotonic(), -SAY_EVERY

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def start_cell(self, notebook: nbformat.NotebookNode) -> Callable[..., None]:
        total = sum(c.cell_type == "code" for c in notebook.cells)

        def hook(cell: nbformat.NotebookNode, cell_index: int) -> None:
            # cells are counted as a reader counts them: code cells of the source, without the injected one
            if cell.cell_type == "code" and not tagged(cell, "injected-parameters"):
                self.cell += 1
                self._say(f"cell {self.cell} of {total}")

        return hook

    def write(self, text: str) -> None:
        with self.transcript.open("a") as f:
            f.write(text)
        lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
        if lines:
            self._say(lines[-1])

    def flush(self) -> None:
        """Part of the file interface; every line is written at once."""

    def _say(self, line: str) -> None:
        if time.monotonic() - self._said >= SAY_EVERY:
            self._said = time.monotonic()
            self.log(f"{self.name} [{self.seconds():4.0f} s]: {line}")


def _explain(progress: _Progress, error: Exception, failed: Path) -> str:
    trace = getattr(error, "traceback", None) or [f"{type(error).__name__}: {error}"]
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(trace)).splitlines() if line.strip()]
    why = "; the kernel died, most often for lack of memory" if type(error).__name__ == "DeadKernelError" else ""
    kept = f"\nwhat was executed is in {failed.name}, beside where the result would be" if failed.exists() else ""
    shown = "\n".join(f"  {line}" for line in lines[-8:])
    return f"chapter {progress.name} failed in code cell {progress.cell}{why}\n{shown}{kept}"


def _private_paths(parameters: Mapping[str, Value]) -> dict[str, str]:
    folders = {str(cache_folder()): "<cache>", sys.prefix: "<environment>", str(Path.home()): "~"}
    for value in parameters.values():
        if isinstance(value, str) and os.path.isabs(value):
            folders[str(Path(value).parent)] = "<data>"
    return folders


def clean(notebook: nbformat.NotebookNode, folders: Mapping[str, str], remark: Mapping[str, Any]) -> None:
    """Strip, in place, what differs between machines and moments: times, paths, addresses, widgets, and the error stream."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "medsynth": dict(remark),
        }
    )
    # longest first, so that a folder inside another one is named by itself
    known = sorted(((f, name) for f, name in folders.items() if len(f) > 1), key=lambda pair: -len(pair[0]))
    rules = [(re.compile(rf"(?<![\w+/.-]){re.escape(folder)}(?![\w+-])"), name) for folder, name in known]
    rules.append((re.compile(r"(?<= at )0x[0-9a-f]{6,}"), "0x…"))

    def scrub(text: str) -> str:
        for pattern, replacement in rules:
            text = pattern.sub(lambda _, r=replacement: r, text)
        return text

    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k not in ("papermill", "execution")})
        cell.source = scrub(cell.source)
        if "injected-parameters" in tags:
            cell.id = f"injected-{number}"
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _clean_output(output, scrub)) is not None]


def _clean_output(output: nbformat.NotebookNode, scrub: Callable[[str], str]) -> nbformat.NotebookNode | None:
    if output.output_type == "stream":
        output.text = scrub(output.text)
        # warnings and progress are in the log; a page shows what a chapter means to say
        return output if output.name == "stdout" else None
    if "data" in output:
        # a widget is dead without its kernel; its static twin is another output
        if "application/vnd.jupyter.widget-view+json" in output.data:
            return None
        for kind, content in output.data.items():
            if kind.startswith("text/") and isinstance(content, str):
                output.data[kind] = scrub(content)
    return output
