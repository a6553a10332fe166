from __future__ import annotations

import pytest
import torch
from torch import nn

from medsynth.models.denoiser import Denoiser
from medsynth.models.lora import RANK, merge_adapters
from medsynth.privacy.dp.gradients.clipped_sums import refuse_unsuitable
from medsynth.privacy.dp.trainable import TRAINABLE, make_trainable
from medsynth.settings.config import DenoiserConfig

NAMES = ("age", "sex")


def denoiser(attention: tuple[bool, bool] = (False, True)) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DenoiserConfig((16, 32), 1, attention, 16, 2), NAMES, 2)


@pytest.mark.parametrize("which", TRAINABLE)
def test_what_is_named_is_what_is_trained(which):
    model = denoiser()
    names = make_trainable(model, which)
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]
    refuse_unsuitable(model)
    assert any(name.startswith("unet.class_embedding.") for name in names), "every set trains how a condition is read"


def test_sets_hold_what_their_names_say():
    everything = dict(denoiser().named_parameters())
    full, bias, attention = (set(make_trainable(denoiser(), which)) for which in ("full", "bias", "attention"))
    assert full == everything.keys()
    embeddings = {name for name in full if name.startswith(("unet.class_embedding.", "unet.time_embed."))}
    assert len(embeddings) == 8
    norms = {name for name in full if "norm" in name or name.startswith("unet.out.0.")}
    assert bias == embeddings | norms | {name for name in full if name.endswith(".bias")}
    # middle, one on the way down, two on the way up; four matrices each
    projections = {name for name in attention - bias if ".attn." in name}
    assert len(projections) == 16 and all(name.endswith(".weight") for name in projections)
    assert (
        all(name.endswith("time_emb_proj.weight") for name in attention - bias - projections) and attention > bias | projections
    )
    assert not any("conv" in name for name in attention if name.endswith(".weight"))


def test_lora_trains_adapters_and_embeddings_alone():
    model = denoiser()
    names = set(make_trainable(model, "lora"))
    adapters = {name for name in names if ".attn." in name}
    assert {name.rpartition(".attn.")[2] for name in adapters} == {
        f"{projection}.{side}.weight" for projection in ("to_q", "to_k", "to_v", "out_proj") for side in ("down", "up")
    }
    assert len(adapters) == 2 * 16
    assert all(RANK in model.get_parameter(name).shape for name in adapters)
    assert names - adapters == {n for n in names if n.startswith(("unet.class_embedding.", "unet.time_embed."))}
    merge_adapters(model)
    assert model.state_dict().keys() == denoiser().state_dict().keys()


def test_a_set_is_chosen_anew_each_time():
    model = denoiser()
    make_trainable(model, "full")
    assert make_trainable(model, "bias") == make_trainable(denoiser(), "bias")


def test_numbers_of_parameters_of_the_tried_model():
    sizes = {}
    for which in TRAINABLE:
        names = (
            "lvedv",
            "lvesv",
            "lvef",
            "rvedv",
            "rvesv",
            "rvef",
            "wall_ed",
            "wall_es",
            "age",
            "sex",
            "bmi",
            "phase",
            "angle",
            "n_slices",
        )
        model = Denoiser(DenoiserConfig(channels=(32, 64, 96), spatial_dims=3), names, 8)
        sizes[which] = sum(model.get_parameter(name).numel() for name in make_trainable(model, which))
    assert sizes == {"bias": 53_128, "attention": 348_040, "lora": 79_616, "full": 4_821_384}


def test_an_unknown_set_and_a_model_without_attention_are_refused():
    with pytest.raises(ValueError, match="'head'; expected one of bias, attention, lora, full"):
        make_trainable(denoiser(), "head")
    for which in ("attention", "lora"):
        with pytest.raises(ValueError, match=f"'{which}': the model has no projections"):
            make_trainable(nn.Sequential(nn.Linear(2, 2)), which)
