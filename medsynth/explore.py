"""Live explorers: what is asked for, as sliders, and the image that comes out; and their static twins for a page."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from medsynth.diffusion.conditions import asked_for
from medsynth.diffusion.generator import Generator
from medsynth.figures import image_grid, image_rows, may_show
from medsynth.imageset import ImageSet, concatenate
from medsynth.language.vocabulary import PHANTOM_FINDINGS
from medsynth.privacy.gate.feature_table import batched_features
from medsynth.privacy.gate.gate import Gate
from medsynth.privacy.gate.search import Gallery
from medsynth.resample import slices_of

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure


def explorer(generator: Generator) -> ipywidgets.Widget:
    """Sliders for finding, age, sex, BMI, guidance and seed beside the image they ask for; needs a running kernel.

    Raises ValueError for sets that may not be shown.
    """
    import ipywidgets as widgets

    _may_be_shown(generator.like)
    controls = {
        "finding": widgets.Dropdown(options=PHANTOM_FINDINGS, description="finding"),
        "age": widgets.IntSlider(value=55, min=20, max=90, description="age (years)", continuous_update=False),
        "sex": widgets.ToggleButtons(options={"female": 0, "male": 1}, description="sex"),
        "bmi": widgets.FloatSlider(value=26, min=18, max=40, description="BMI (kg/m²)", continuous_update=False),
        "guidance": widgets.FloatSlider(value=1, min=0, max=5, step=0.25, description="guidance", continuous_update=False),
        "seed": widgets.IntSlider(value=0, min=0, max=99, description="seed", continuous_update=False),
    }

    def drawn(**asked: object) -> ImageSet:
        guidance, seed = asked.pop("guidance"), asked.pop("seed")
        reseeded = replace(generator, sampling=replace(generator.sampling, seed=seed))
        return reseeded.draw(asked_for(generator.like, generator.names, pd.DataFrame([asked])), guidance=guidance)

    return _live(controls, lambda **asked: _picture(drawn(**asked)))


def static_sheet(generator: Generator) -> Figure:
    """The explorer's static twin: every finding (rows) under rising age and BMI (columns), one seed."""
    people = [(30, 22.0), (30, 34.0), (55, 22.0), (55, 34.0), (80, 22.0), (80, 34.0)]
    wishes = pd.DataFrame([{"finding": f, "age": age, "sex": 1, "bmi": bmi} for f in PHANTOM_FINDINGS for age, bmi in people])
    images = generator.draw(asked_for(generator.like, generator.names, wishes))
    return image_grid(
        images, rows=len(PHANTOM_FINDINGS), columns=len(people), row_labels=PHANTOM_FINDINGS,
        titles=[f"{age} years, BMI {bmi:.0f}" for age, bmi in people],
    )  # fmt: skip


def heart_explorer(generators: Mapping[str, Generator]) -> ipywidgets.Widget:
    """Sliders for the generator (as a rule one for each epsilon), LV volume, wall and phase beside the middle slice they ask for.

    Needs a running kernel. Raises ValueError for sets that may not be shown.
    """
    import ipywidgets as widgets

    for generator in generators.values():
        _may_be_shown(generator.like)
    controls = {
        "epsilon": widgets.SelectionSlider(options=list(generators), description="epsilon"),
        "lv": widgets.IntSlider(value=150, min=60, max=280, description="LV (ml)", continuous_update=False),
        "wall": widgets.FloatSlider(value=9, min=5, max=16, description="wall (mm)", continuous_update=False),
        "phase": widgets.ToggleButtons(options={"filled": 0, "emptied": 1}, description="phase"),
        "seed": widgets.IntSlider(value=0, min=0, max=99, description="seed", continuous_update=False),
    }
    return _live(controls, lambda epsilon, **asked: _picture(_middle(_heart(generators[epsilon], **asked))))


def heart_sheet(generators: Mapping[str, Generator], *, volumes: tuple[float, ...] = (90, 130, 170, 210, 250)) -> Figure:
    """The static twin: each generator's middle slice of one filled heart, the LV volume asked for rising from left to right."""
    rows = {}
    for name, generator in generators.items():
        drawn = [_middle(_heart(generator, lv=v, wall=9.0, phase=0, seed=0)) for v in volumes]
        rows[name] = concatenate(drawn, name)
    return image_rows(rows, columns=len(volumes), title=f"LV volume asked for: {', '.join(f'{v:g}' for v in volumes)} ml")


class Answer(NamedTuple):
    """What a sentence gave: the image, what the gate says of it, and the nearest released image, with how far it is."""

    image: ImageSet
    verdict: str
    neighbour: ImageSet
    apart: float


class Asked:
    """A generator that is asked by sentences, beside a release and the gate before it. Phantoms only: verdicts say who is near.

    Raises ValueError for sets that may not be shown, and for an empty release.
    """

    def __init__(self, generator: Generator, released: ImageSet, gate: Gate) -> None:
        for images in (generator.like, released, gate.private):
            _may_be_shown(images)
        self.generator, self.released, self.gate = generator, released, gate
        self._gallery = Gallery(np.concatenate([*batched_features(gate.phi, released)]))

    def answer(self, sentence: str, seed: int = 0) -> Answer:
        """One image; ValueError for a sentence that `Generator.ask` refuses."""
        # the generator's own seed may be that of the release, and the same noise gives nearly the same image
        sampling = replace(self.generator.sampling, seed=self.generator.sampling.seed + 1 + seed)
        image = replace(self.generator, sampling=sampling).draw(self.generator.ask(sentence))
        found, judged = self._gallery.nearest(self.gate.phi(image)), self.gate.judge(image)
        far = f"{judged.distance[0]:.2f} from a patient, limit {self.gate.tau:.2f}"
        verdict = f"passes: {far}" if judged.accepted[0] else f"refused, {judged.reason[0]}: {far}"
        return Answer(image, verdict, self.released.select(found.row), float(found.distance[0]))


def sentence_explorer(asked: Asked, sentence: str = "large left nodule, female, 60s") -> ipywidgets.Widget:
    """A sentence and a seed beside the image they ask for, the gate's verdict, and its nearest neighbour in the release.

    Needs a running kernel. What a sentence is refused for stands in the place of its image.
    """
    import ipywidgets as widgets

    controls = {
        "sentence": widgets.Text(value=sentence, description="sentence", continuous_update=False),
        "seed": widgets.IntSlider(value=0, min=0, max=99, description="seed", continuous_update=False),
    }
    return _live(controls, lambda **told: _answers([asked.answer(**told)], labels=[""]))


def sentence_sheet(asked: Asked, sentences: Sequence[str], *, draws: int = 2) -> Figure:
    """The static twin: of each sentence (rows) several draws with their verdicts, each beside its neighbour in the release."""
    labels = [textwrap.fill(sentence, 16) for sentence in sentences]
    return _answers([asked.answer(s, seed) for s in sentences for seed in range(draws)], labels, columns=draws)


def _answers(answers: Sequence[Answer], labels: Sequence[str], columns: int = 1) -> Figure:
    images = [part for a in answers for part in (a.image, a.neighbour)]
    titles = [t for a in answers for t in (textwrap.fill(a.verdict, 20), f"nearest released,\n{a.apart:.2f} away")]
    return image_grid(
        concatenate(images, "answers"), rows=len(labels), columns=2 * columns, titles=titles, row_labels=labels, width=6.5
    )


def _live(controls: Mapping[str, ipywidgets.Widget], drawn: Callable[..., Figure]) -> ipywidgets.Widget:
    """Controls beside the picture that `drawn` makes of their values, made anew when one is moved; or beside what it refuses."""
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    screen = widgets.Output()

    def redraw(_: object = None) -> None:
        with screen:
            screen.clear_output(wait=True)
            try:
                drawn(**{k: c.value for k, c in controls.items()})
                plt.show()
            except ValueError as error:
                print(error)

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return widgets.HBox([widgets.VBox(list(controls.values())), screen])


def _picture(images: ImageSet) -> Figure:
    return image_grid(images, rows=1, columns=1, width=3.5)


def _heart(generator: Generator, *, lv: float, wall: float, phase: int, seed: int) -> ImageSet:
    """One stack; the same seed is the same noise, whatever is asked for."""
    when = "es" if phase else "ed"
    asked = {"lvesv" if phase else "lvedv": lv, f"wall_{when}": wall, "phase": phase}
    reseeded = replace(generator, sampling=replace(generator.sampling, seed=seed))
    return reseeded.draw(asked_for(generator.like, generator.names, pd.DataFrame([asked])))


def _middle(stack: ImageSet) -> ImageSet:
    third = stack.spatial[0] // 3
    return slices_of(stack, range(third, third + 1))


def _may_be_shown(images: ImageSet) -> None:
    if not may_show(images):
        raise ValueError(f"{images.name}: images of people are not shown before a gate has cleared them")
