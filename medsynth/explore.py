"""Live explorers: what is asked for, as sliders, and the image that comes out; and their static twins for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from medsynth.diffusion.conditions import asked_for
from medsynth.diffusion.generator import Generator
from medsynth.figures import image_grid, image_rows, may_show
from medsynth.imageset import ImageSet, concatenate
from medsynth.language.vocabulary import PHANTOM_FINDINGS
from medsynth.resample import slices_of

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure


def explorer(generator: Generator) -> ipywidgets.Widget:
    """Sliders for finding, age, sex, BMI, guidance and seed beside the image they ask for; needs a running kernel.

    Raises ValueError for sets that may not be shown.
    """
    import ipywidgets as widgets

    _shown(generator)
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

    return _live(controls, drawn)


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
        _shown(generator)
    controls = {
        "epsilon": widgets.SelectionSlider(options=list(generators), description="epsilon"),
        "lv": widgets.IntSlider(value=150, min=60, max=280, description="LV (ml)", continuous_update=False),
        "wall": widgets.FloatSlider(value=9, min=5, max=16, description="wall (mm)", continuous_update=False),
        "phase": widgets.ToggleButtons(options={"filled": 0, "emptied": 1}, description="phase"),
        "seed": widgets.IntSlider(value=0, min=0, max=99, description="seed", continuous_update=False),
    }
    return _live(controls, lambda epsilon, **asked: _middle(_heart(generators[epsilon], **asked)))


def heart_sheet(generators: Mapping[str, Generator], *, volumes: tuple[float, ...] = (90, 130, 170, 210, 250)) -> Figure:
    """The static twin: each generator's middle slice of one filled heart, the LV volume asked for rising from left to right."""
    rows = {}
    for name, generator in generators.items():
        drawn = [_middle(_heart(generator, lv=v, wall=9.0, phase=0, seed=0)) for v in volumes]
        rows[name] = concatenate(drawn, name)
    return image_rows(rows, columns=len(volumes), title=f"LV volume asked for: {', '.join(f'{v:g}' for v in volumes)} ml")


def _live(controls: Mapping[str, ipywidgets.Widget], drawn: Callable[..., ImageSet]) -> ipywidgets.Widget:
    """Controls beside the first image of what `drawn` makes of their values, drawn again when one is moved."""
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    screen = widgets.Output()

    def redraw(_: object = None) -> None:
        image = drawn(**{k: c.value for k, c in controls.items()})
        with screen:
            screen.clear_output(wait=True)
            plt.imshow(image.images[0, 0], cmap="gray", vmin=image.range[0], vmax=image.range[1])
            plt.axis("off")
            plt.show()

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return widgets.HBox([widgets.VBox(list(controls.values())), screen])


def _heart(generator: Generator, *, lv: float, wall: float, phase: int, seed: int) -> ImageSet:
    """One stack; the same seed is the same noise, whatever is asked for."""
    when = "es" if phase else "ed"
    asked = {"lvesv" if phase else "lvedv": lv, f"wall_{when}": wall, "phase": phase}
    reseeded = replace(generator, sampling=replace(generator.sampling, seed=seed))
    return reseeded.draw(asked_for(generator.like, generator.names, pd.DataFrame([asked])))


def _middle(stack: ImageSet) -> ImageSet:
    third = stack.spatial[0] // 3
    return slices_of(stack, range(third, third + 1))


def _shown(generator: Generator) -> None:
    if not may_show(generator.like):
        raise ValueError(f"{generator.like.name}: images of people are not shown before a gate has cleared them")
