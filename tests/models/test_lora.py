from __future__ import annotations

import pytest
import torch
from torch import nn

from medsynth.models.denoiser import Denoiser
from medsynth.models.lora import LowRankLinear, insert_adapters, merge_adapters
from medsynth.settings.config import DenoiserConfig

NAMES = ("unet.middle_block.attention.attn.to_q", "unet.middle_block.attention.attn.out_proj")


def denoiser() -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig((16, 32), 1, (False, True), 16, 2), ("age", "sex"), 2)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return model


def prediction(model: nn.Module) -> torch.Tensor:
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(3, 2, 8, 8, generator=made), torch.tensor([0, 500, 999]), torch.randn(3, 2, generator=made))


def test_new_adapters_change_nothing_and_trained_ones_do():
    model, plain = denoiser(), denoiser()
    insert_adapters(model, NAMES)
    torch.testing.assert_close(prediction(model), prediction(plain), rtol=0, atol=0)
    nn.init.normal_(model.get_submodule(NAMES[0]).up.weight)
    assert not torch.allclose(prediction(model), prediction(plain), atol=1e-3)


def test_an_adapter_adds_a_product_of_its_rank():
    layer = LowRankLinear(nn.Linear(6, 5), rank=2)
    nn.init.normal_(layer.up.weight)
    added = layer(torch.eye(6)) - layer.base(torch.eye(6))
    assert torch.linalg.matrix_rank(added, tol=1e-4) == 2
    torch.testing.assert_close(added.T, layer.up.weight @ layer.down.weight)


def test_merged_weights_are_an_ordinary_denoiser_of_the_same_predictions():
    model = denoiser()
    insert_adapters(model, NAMES)
    for name in NAMES:
        nn.init.normal_(model.get_submodule(name).up.weight, std=0.3)
    adapted = prediction(model)
    merge_adapters(model)
    plain = Denoiser(model.config, model.names, 2)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(prediction(plain), adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(prediction(denoiser()), adapted, atol=1e-3)


def test_adapters_start_from_seed_and_position_alone():
    starts = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        model = denoiser()
        torch.manual_seed(global_seed)
        insert_adapters(model, NAMES, seed=seed)
        starts.append([model.get_submodule(name).down.weight.detach() for name in NAMES])
    assert torch.equal(starts[0][0], starts[1][0]) and not torch.equal(starts[0][0], starts[2][0])
    assert not torch.equal(starts[0][0], starts[0][1])


def test_only_a_plain_linear_layer_takes_an_adapter():
    model = denoiser()
    with pytest.raises(ValueError, match=r"unet.conv_in.conv is a Conv2d; expected a Linear"):
        insert_adapters(model, ["unet.conv_in.conv"])
    insert_adapters(model, NAMES)
    with pytest.raises(ValueError, match="to_q is a LowRankLinear; expected a Linear without an adapter"):
        insert_adapters(model, NAMES)
