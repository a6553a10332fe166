"""A live explorer: what is asked for, as sliders, and the image that comes out; and its static twin for a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medsynth.config import DiffusionConfig, SamplingConfig
from medsynth.diffusion.sample import sample_images
from medsynth.figures import image_grid, may_show
from medsynth.imageset import ImageSet
from medsynth.models.autoencoder import Autoencoder
from medsynth.models.conditioning import thorax_condition
from medsynth.models.denoiser import Denoiser
from medsynth.vocabulary import PHANTOM_FINDINGS

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure


def drawn(
    denoiser: Denoiser,
    autoencoder: Autoencoder,
    wishes: pd.DataFrame,
    *,
    like: ImageSet,
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
) -> ImageSet:
    """One image per row of `wishes` (finding, age in years, sex 1 = male, BMI in kg/m2), in the unit and size of `like`."""
    size = (len(wishes), *like.images.shape[1:])
    blank = like.with_images(
        np.full(size, like.range[0], np.float32),
        patient=np.arange(len(wishes)), split=None, attributes=wishes.assign(licence=like.data_licence),
    )  # fmt: skip
    condition = thorax_condition(blank)
    return sample_images(
        denoiser, autoencoder, condition, like=like, diffusion=diffusion, sampling=sampling, attributes=blank.attributes
    )


def explorer(denoiser: Denoiser, autoencoder: Autoencoder, *, like: ImageSet, diffusion: DiffusionConfig) -> ipywidgets.Widget:
    """Sliders for finding, age, sex, BMI, guidance and seed beside the image they ask for; needs a running kernel.

    Raises ValueError for sets that may not be shown.
    """
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    if not may_show(like):
        raise ValueError(f"{like.name}: images of people, or learned from them, are not shown before a gate has cleared them")
    controls = {
        "finding": widgets.Dropdown(options=PHANTOM_FINDINGS, description="finding"),
        "age": widgets.IntSlider(value=55, min=20, max=90, description="age (years)", continuous_update=False),
        "sex": widgets.ToggleButtons(options={"female": 0, "male": 1}, description="sex"),
        "bmi": widgets.FloatSlider(value=26, min=18, max=40, description="BMI (kg/m²)", continuous_update=False),
        "guidance": widgets.FloatSlider(value=1, min=0, max=5, step=0.25, description="guidance", continuous_update=False),
        "seed": widgets.IntSlider(value=0, min=0, max=99, description="seed", continuous_update=False),
    }
    screen = widgets.Output()

    def redraw(_: object = None) -> None:
        asked = {k: c.value for k, c in controls.items()}
        sampling = SamplingConfig(images=1, steps=15, guidance=asked.pop("guidance"), seed=asked.pop("seed"))
        image = drawn(denoiser, autoencoder, pd.DataFrame([asked]), like=like, diffusion=diffusion, sampling=sampling)
        with screen:
            screen.clear_output(wait=True)
            plt.imshow(image.images[0, 0], cmap="gray", vmin=like.range[0], vmax=like.range[1])
            plt.axis("off")
            plt.show()

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return widgets.HBox([widgets.VBox(list(controls.values())), screen])


def static_sheet(
    denoiser: Denoiser, autoencoder: Autoencoder, *, like: ImageSet, diffusion: DiffusionConfig, sampling: SamplingConfig
) -> Figure:
    """The explorer's static twin: every finding (rows) under rising age and BMI (columns), one seed."""
    people = [(30, 22.0), (30, 34.0), (55, 22.0), (55, 34.0), (80, 22.0), (80, 34.0)]
    wishes = pd.DataFrame([{"finding": f, "age": age, "sex": 1, "bmi": bmi} for f in PHANTOM_FINDINGS for age, bmi in people])
    images = drawn(denoiser, autoencoder, wishes, like=like, diffusion=diffusion, sampling=sampling)
    return image_grid(
        images, rows=len(PHANTOM_FINDINGS), columns=len(people), row_labels=PHANTOM_FINDINGS,
        titles=[f"{age} years, BMI {bmi:.0f}" for age, bmi in people],
    )  # fmt: skip
