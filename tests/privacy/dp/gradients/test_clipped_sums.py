from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import nn
from torch.nn import functional

from medsynth.language.sentences import TEXT, TOKENS
from medsynth.models.conditioning import FEATURES
from medsynth.models.denoiser import Denoiser
from medsynth.privacy.dp.gradients import clipped_sums as module
from medsynth.privacy.dp.gradients import layer_rules
from medsynth.privacy.dp.gradients.clipped_sums import ClippedSums, clipped_sums, refuse_unsuitable
from medsynth.privacy.dp.trainable import TRAINABLE, make_trainable
from medsynth.settings.config import DenoiserConfig

NAMES = ("age", "sex", "bmi")
RECORDS = (1, 3, 2)  # of each patient
SHAPES = {2: (6, 4), 3: (2, 4, 4)}

Losses = Callable[[torch.Tensor], torch.Tensor]  # of chosen rows


def denoiser(dims: int, which: str, names: tuple[str, ...] = NAMES) -> Denoiser:
    """MONAI starts layers at zero, and adapters start there: gradients would vanish, and a comparison of zeros shows nothing."""
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig((16, 32), 1, (False, True), 16, dims), names, 2).double()
    make_trainable(model, which)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return model


def denoising(model: Denoiser, rows: int) -> Losses:
    dtype = next(model.parameters()).dtype
    shape = (rows, 2, *SHAPES[model.config.spatial_dims])
    made = torch.Generator().manual_seed(1)
    noisy, target = (torch.randn(shape, dtype=dtype, generator=made) for _ in range(2))
    condition = torch.randn(rows, len(model.names), dtype=dtype, generator=made)
    if said := [k for k, name in enumerate(model.names) if name in TEXT]:
        condition[:, said] = torch.randint(len(TOKENS), (rows, len(said)), generator=made).to(dtype)
        condition[::3, said[2:]] = torch.nan
    condition[::2, 1] = torch.nan
    times = torch.randint(1000, (rows,), generator=made)
    # losses of very different size, so that some patients are clipped and some are not
    size = torch.linspace(0.01, 1, rows, dtype=dtype)

    def losses(some: torch.Tensor) -> torch.Tensor:
        return size[some] * (model(noisy[some], times[some], condition[some]) - target[some]).square().flatten(1).mean(1)

    return losses


def rows_of(records: tuple[int, ...], draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(patient, weight) of shuffled rows."""
    patient = torch.repeat_interleave(torch.arange(len(records)), torch.tensor(records) * draws)
    patient = patient[torch.randperm(len(patient), generator=torch.Generator().manual_seed(2))]
    return patient, 1 / (torch.tensor(records) * draws).double()[patient]


def one_by_one(model: nn.Module, losses: Losses, patient: torch.Tensor, weight: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Gradient of each patient by ordinary differentiation of its own rows."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = []
    for one in range(int(patient.max()) + 1):
        rows = (patient == one).nonzero()[:, 0]
        loss = (weight[rows] * losses(rows)).sum()
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        gradients.append({n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(trained.items(), found, strict=True)})
    return gradients


def norm(gradient: dict[str, torch.Tensor]) -> float:
    return float(sum(g.square().sum() for g in gradient.values()) ** 0.5)


def check(model: nn.Module, losses: Losses, patient: torch.Tensor, weight: torch.Tensor, found: ClippedSums, clip: float) -> None:
    """AssertionError unless `found` is the micro-batch reference's to 1e-9 of its length."""
    gradients = one_by_one(model, losses, patient, weight)
    norms = [norm(g) for g in gradients]
    assert found.norms.tolist() == pytest.approx(norms, rel=1e-9)
    sums = {n: sum(min(1, clip / (size or clip)) * g[n] for g, size in zip(gradients, norms, strict=True)) for n in gradients[0]}
    assert found.sums.keys() == sums.keys()
    length = norm(sums)
    assert norm({n: found.sums[n] - sums[n] for n in sums}) < 1e-9 * length
    for name, expected in sums.items():
        torch.testing.assert_close(found.sums[name], expected, rtol=1e-9, atol=1e-12 * length)


def run(model: nn.Module, losses: Losses, patient: torch.Tensor, weight: torch.Tensor, clip: float) -> ClippedSums:
    return clipped_sums(model, lambda: losses(torch.arange(len(patient))), patient, weight, clip=clip)


def middle(model: nn.Module, losses: Losses, patient: torch.Tensor, weight: torch.Tensor) -> float:
    """A bound that clips some patients and leaves others."""
    return float(torch.tensor([norm(g) for g in one_by_one(model, losses, patient, weight)]).median()) * 1.01


# the denoiser


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("which", TRAINABLE)
@pytest.mark.parametrize("dims", [2, 3])
def test_sums_and_norms_are_those_of_one_patient_at_a_time(dims, which, draws):
    model = denoiser(dims, which)
    patient, weight = rows_of(RECORDS, draws)
    losses = denoising(model, len(patient))
    clip = middle(model, losses, patient, weight)
    found = run(model, losses, patient, weight, clip)
    check(model, losses, patient, weight, found, clip)
    assert all(total.any() for total in found.sums.values()), "a comparison of zeros shows nothing"
    assert (found.norms > clip).any() and (found.norms < clip).any()
    rows = losses(torch.arange(len(patient))).detach()
    assert found.loss == pytest.approx(float((weight * rows).sum()) / len(RECORDS))


@pytest.mark.parametrize("which", TRAINABLE)
def test_words_and_features_add_to_a_patient_s_gradient_and_no_other(which):
    model = denoiser(2, which, (*NAMES, *FEATURES[:3], *TEXT))
    patient, weight = rows_of(RECORDS, 2)
    losses = denoising(model, len(patient))
    clip = middle(model, losses, patient, weight)
    found = run(model, losses, patient, weight, clip)
    check(model, losses, patient, weight, found, clip)
    trained = {name for name, total in found.sums.items() if total.any()}
    assert trained >= {"unet.text.embed.weight", "unet.class_embedding.embed_features.0.weight"}
    assert any(name.startswith("unet.listening.") for name in trained)


def test_a_layer_of_words_without_a_rule_is_refused_by_name():
    model = denoiser(2, "full", (*NAMES, *TEXT))
    refuse_unsuitable(model)
    model.unet.text.layers[0].attention = nn.MultiheadAttention(64, 4)
    with pytest.raises(ValueError, match=r"text\.layers\.0\.attention \(MultiheadAttention\) has no rule for in_proj_weight"):
        refuse_unsuitable(model)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("dims", [2, 3])
def test_opacus_finds_the_same_sums_where_a_patient_is_one_row(dims):
    # opacus 1.6.0 takes every layout of a 2D convolution's inputs for the contiguous one, and its gradients are then wrong
    model = denoiser(dims, "full").to(memory_format=torch.contiguous_format)
    patient, weight = torch.arange(4), torch.ones(4, dtype=torch.float64)
    losses = denoising(model, 4)
    found = run(model, losses, patient, weight, clip=0.1)
    check(model, losses, patient, weight, found, 0.1)
    watched = GradSampleModule(model, loss_reduction="sum")
    losses(torch.arange(4)).sum().backward()
    each = {name.removeprefix("_module."): p.grad_sample for name, p in watched.named_parameters()}
    norms = sum(g.flatten(1).square().sum(1) for g in each.values()).sqrt()
    torch.testing.assert_close(found.norms, norms, rtol=1e-9, atol=0)
    factor = (0.1 / norms).clamp(max=1)
    for name, gradients in each.items():
        torch.testing.assert_close(found.sums[name], torch.tensordot(factor, gradients, 1), rtol=1e-8, atol=1e-11)


def _per_record(patch, model, losses, patient, weight, clip):
    return run(model, losses, torch.arange(len(patient)), weight, clip)


def _unweighted(patch, model, losses, patient, weight, clip):
    return run(model, losses, patient, torch.ones_like(weight), clip)


def _unclipped(patch, model, losses, patient, weight, clip):
    sums = module._Book.sums
    patch.setattr(module._Book, "sums", lambda book, factor: sums(book, torch.ones_like(factor)))
    return run(model, losses, patient, weight, clip)


def _clipped_after_averaging(patch, model, losses, patient, weight, clip):
    gradients = one_by_one(model, losses, patient, weight)
    average = norm({n: sum(g[n] for g in gradients) / len(gradients) for n in gradients[0]})
    sums = module._Book.sums
    same = min(1, clip / average)
    patch.setattr(module._Book, "sums", lambda book, factor: sums(book, torch.full_like(factor, same)))
    return run(model, losses, patient, weight, clip)


def _layer_by_layer(patch, model, losses, patient, weight, clip):
    found = run(model, losses, patient, weight, clip)
    gradients = one_by_one(model, losses, patient, weight)
    sums = {n: sum(min(1, clip / norm({n: g[n]})) * g[n] for g in gradients) for n in found.sums}
    return found._replace(sums=sums)


@pytest.mark.parametrize("bug", [_per_record, _unweighted, _unclipped, _clipped_after_averaging, _layer_by_layer])
def test_the_comparison_tells_planted_bugs_apart(bug, monkeypatch):
    model = denoiser(2, "bias")
    patient, weight = rows_of(RECORDS, 2)
    losses = denoising(model, len(patient))
    clip = middle(model, losses, patient, weight)
    check(model, losses, patient, weight, run(model, losses, patient, weight, clip), clip)
    with monkeypatch.context() as patch:
        found = bug(patch, model, losses, patient, weight, clip)
    # norms are looked at first; the sums alone must tell as well
    found = found._replace(norms=torch.tensor([norm(g) for g in one_by_one(model, losses, patient, weight)]))
    with pytest.raises(AssertionError):
        check(model, losses, patient, weight, found, clip)


# layers, one by one


def compared(model: nn.Module, inputs: torch.Tensor, patient: torch.Tensor, clip: float | None = None) -> ClippedSums:
    """The result for squared outputs of `model`, once it has passed `check`."""
    model = model.double()
    weight = torch.rand(len(patient), dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.5

    def losses(some: torch.Tensor) -> torch.Tensor:
        return (model(inputs[some]) - 0.3).square().flatten(1).sum(1)

    clip = clip or middle(model, losses, patient, weight)
    found = run(model, losses, patient, weight, clip)
    check(model, losses, patient, weight, found, clip)
    return found


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["by positions", "by gradients", "by gradients that are kept"])
def form(request, monkeypatch) -> str:
    """All ways to a weight's norm, whichever is cheapest."""
    monkeypatch.setattr(layer_rules, "_by_positions", lambda *_: 0 if request.param == "by positions" else 1 << 60)
    monkeypatch.setattr(module._Book, "_are_small", lambda *_: request.param == "by gradients that are kept")
    return request.param


CONVOLUTIONS = {
    "plain": nn.Conv3d(2, 3, 3, padding=1),
    "uneven": nn.Conv3d(2, 3, (3, 2, 1), stride=(2, 1, 3), padding=(1, 0, 2), dilation=(2, 1, 1)),
    "wider than the image": nn.Conv2d(2, 3, 5, padding=4, stride=2),
    "reflected": nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"),
    "same": nn.Conv2d(2, 3, 4, padding="same", bias=False),
    "one by one": nn.Conv2d(2, 3, 1),
    "grouped": nn.Conv2d(2, 4, 3, groups=2),
    "a line": nn.Conv1d(2, 3, 3, stride=2),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_any_geometry(name, form):
    layer = CONVOLUTIONS[name]
    compared(layer, normal(6, 2, *(5, 6, 7)[: layer.weight.ndim - 2]), torch.tensor([1, 0, 2, 1, 1, 3]))


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 2, 3, 4)])
def test_a_linear_layer_at_any_number_of_positions(shape, form):
    compared(nn.Linear(4, 3), normal(*shape), torch.tensor([0, 0, 1, 2, 2, 2]))


@pytest.mark.parametrize(
    "layer",
    [nn.GroupNorm(2, 4), nn.LayerNorm(3), nn.LayerNorm((5, 3)), nn.LayerNorm((5, 3), bias=False), nn.Linear(3, 2, bias=False)],
    ids=str,
)
def test_a_norm_or_a_layer_without_bias(layer):
    compared(layer, normal(6, 4, 5, 3), torch.tensor([0, 0, 1, 2, 2, 2]))


def test_an_embedding_whose_entries_repeat_and_pad():
    index = torch.tensor([[0, 1, 1], [2, 2, 2], [4, 0, 0], [1, 3, 4]])
    found = compared(nn.Embedding(6, 3, padding_idx=4), index, torch.tensor([0, 1, 0, 1]))
    assert not found.sums["weight"][4].any() and not found.sums["weight"][5].any()
    compared(nn.Embedding(6, 3), torch.tensor([0, 5, 5, 1]), torch.tensor([0, 0, 1, 1]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 3))
def test_rows_may_belong_to_patients_in_any_way(patient, positions):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
    # who has no rows has no gradient, and a norm of zero
    compared(model, normal(len(patient), positions, 3), torch.tensor(patient), clip=1.0)


def test_gradients_formed_a_patient_at_a_time_are_the_same(monkeypatch):
    model, patient = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3, padding=1)), torch.tensor([1, 0, 2, 1, 1, 3])
    monkeypatch.setattr(layer_rules, "_by_positions", lambda *_: 1 << 60)
    monkeypatch.setattr(module._Book, "_are_small", lambda *_: False)
    together = compared(model, normal(6, 2, 6, 6), patient, clip=0.1)
    monkeypatch.setattr(module, "CHUNK", 1)
    apart = compared(model, normal(6, 2, 6, 6), patient, clip=0.1)
    torch.testing.assert_close(together.norms, apart.norms)


class Twice(nn.Module):
    """One layer at two places, on maps of two sizes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.alias = layer, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.alias(x)[:, :, 1:]).tanh().flatten(1)


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 2, 3, padding=1), nn.Linear(4, 4), nn.GroupNorm(1, 2)], ids=str)
def test_uses_of_a_layer_are_summed_before_the_norm(layer, form):
    compared(Twice(layer), normal(5, 2, 4, 4), torch.tensor([0, 1, 1, 2, 0]))


@pytest.mark.parametrize("small", [(True, False), (False, True)])
def test_uses_of_a_layer_are_kept_as_the_first_of_them_is(small, monkeypatch):
    decided = []
    monkeypatch.setattr(module._Book, "_are_small", lambda *_: (decided.append(small[len(decided)]), decided[-1])[1])
    compared(Twice(nn.Conv2d(2, 2, 3, padding=1)), normal(5, 2, 4, 4), torch.tensor([0, 1, 1, 2, 0]))
    assert decided == [small[0]]


@pytest.mark.parametrize(("pixels", "kept_as"), [(9, "gradients"), (2, "pairs")])
def test_what_is_kept_of_a_weight_is_what_takes_less_memory(pixels, kept_as, monkeypatch):
    """Three patients' gradients of 8 * 8 * 9 numbers, or inputs and output gradients of 2 * 8 * pixels^2 numbers a row."""
    kept, norms = {}, module._Book.norms

    def noted(book: module._Book) -> torch.Tensor:
        kept["gradients"] = book.gradients["weight"].nbytes if "weight" in book.gradients else 0
        kept["pairs"] = sum(x.nbytes + g.nbytes for pairs in book.pairs.values() for x, g in pairs)
        return norms(book)

    monkeypatch.setattr(module._Book, "norms", noted)
    compared(nn.Conv2d(8, 8, 3, padding=1), normal(4, 8, pixels, pixels), torch.tensor([0, 1, 1, 2]), clip=1.0)
    assert kept == {"gradients": 0, "pairs": 0} | {kept_as: min(3 * 8 * 8 * 9, 4 * 2 * 8 * pixels**2) * 8}


def test_what_gets_no_gradient_counts_as_zero():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.dropped = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.dropped(x)
            with torch.no_grad():
                x = x + self.used(x).sum(1, keepdim=True)
            return self.used(x)

    found = compared(Idle(), normal(3, 3), torch.tensor([0, 1, 1]))
    assert not found.sums["unused.weight"].any() and not found.sums["dropped.bias"].any() and found.sums["used.weight"].any()


def test_losses_that_depend_on_nothing_trained_sum_to_zero():
    model = nn.Linear(3, 2)
    found = clipped_sums(model, lambda: torch.ones(2), torch.tensor([0, 1]), torch.ones(2), clip=1.0)
    assert not found.sums["weight"].any() and found.norms.tolist() == [0, 0] and found.loss == 1


def test_frozen_layers_may_be_of_any_kind_and_get_nothing():
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3), nn.PReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2).eval()
    )
    for layer in (model[1], model[2], model[4]):
        layer.requires_grad_(False)
    model[3].weight.requires_grad_(False)
    assert compared(model, normal(4, 2, 6, 6), torch.tensor([0, 1, 1, 2])).sums.keys() == {"0.weight", "0.bias", "3.bias"}


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]

    def broken() -> torch.Tensor:
        model(torch.ones(2, 3))
        raise RuntimeError("in the middle")

    clipped_sums(model, lambda: model(torch.ones(2, 3)).sum(1), torch.tensor([0, 1]), torch.ones(2), clip=1.0)
    with pytest.raises(RuntimeError, match="in the middle"):
        clipped_sums(model, broken, torch.tensor([0, 1]), torch.ones(2), clip=1.0)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


# precision


def test_a_batch_without_rows_sums_to_zero_and_runs_nothing():
    model = nn.Linear(3, 2)
    found = clipped_sums(model, lambda: pytest.fail("called"), torch.zeros(0, dtype=torch.long), torch.zeros(0), clip=1.0)
    assert {name: total.tolist() for name, total in found.sums.items()} == {"weight": [[0] * 3] * 2, "bias": [0, 0]}
    assert found.norms.shape == (0,) and found.loss != found.loss


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_patient_that_is_not_finite_counts_as_zero_and_spoils_nobody(bad, form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(2), nn.Linear(16, 5))
    x, patient, weight = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 1, 2, 0]), torch.ones(5)

    def losses() -> torch.Tensor:
        return model(x).square().flatten(1).sum(1)

    x[2, 0, 3, 3] = bad
    found = clipped_sums(model, losses, patient, weight, clip=0.5)
    assert [bool(f) for f in found.norms.isfinite()] == [True, False, True]
    everything, x = x, x[[2, 2, 2, 2, 2]]
    nobody = clipped_sums(model, losses, patient, weight, clip=0.5)
    assert not any(total.any() for total in nobody.sums.values()) and nobody.loss != nobody.loss
    x, patient, weight = everything[[0, 3, 4]], torch.tensor([0, 1, 0]), torch.ones(3)
    without = clipped_sums(model, losses, patient, weight, clip=0.5)
    for name, total in found.sums.items():
        torch.testing.assert_close(total, without.sums[name])
    assert found.loss == pytest.approx(without.loss)


def test_under_bfloat16_the_sums_are_those_of_the_rounded_factors_in_float32():
    torch.manual_seed(0)
    model, x = nn.Linear(64, 48), torch.randn(6, 10, 64)

    def losses() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return model(x).float().square().sum((1, 2))

    found = clipped_sums(model, losses, torch.tensor([0, 1, 1, 2, 0, 2]), torch.ones(6), clip=1e9)
    with torch.autocast("cpu", torch.bfloat16):
        g = (2 * model(x).float()).bfloat16().double().detach()
    expected = torch.einsum("rpo,rpi->oi", g, x.bfloat16().double())
    assert found.sums["weight"].dtype == found.norms.dtype == torch.float32
    assert float((found.sums["weight"] - expected).norm() / expected.norm()) < 1e-6  # bfloat16 rounds by 4e-3
    assert float((found.sums["bias"] - g.sum((0, 1))).norm() / g.sum((0, 1)).norm()) < 1e-6


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_no_patient_adds_more_than_the_bound_in_single_precision(dims, half):
    model = denoiser(dims, "full").float()
    losses = denoising(model, 3)

    def single() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            return losses(torch.arange(3))

    found = clipped_sums(model, single, torch.zeros(3, dtype=torch.long), torch.ones(3), clip=0.01)
    assert 0.01 * (1 - 1e-4) < norm({name: total.double() for name, total in found.sums.items()}) <= 0.01


def test_a_norm_whose_products_cancel_is_not_too_small():
    torch.manual_seed(0)
    x = 100 + torch.randn(64, 1, 8, 4)
    g = torch.randn(64, 1, 8, 4)
    g -= g.mean(2, keepdim=True) * (1 - 1e-4)  # what is left of a gradient is far shorter than its parts
    found = layer_rules._inner(*((t := p.flatten(1, 2)) @ t.mT for p in (x, g)))
    true = (g.flatten(1, 2).mT.double() @ x.flatten(1, 2).double()).square().sum((1, 2))
    naive = torch.stack([(a @ a.mT * (b @ b.mT)).sum() for a, b in zip(x[:, 0], g[:, 0], strict=True)])
    assert (naive < 0.999 * true).any(), "the example is too easy"
    assert (found >= true).all()


# refusals


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale


class Own(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "1 .BatchNorm1d. takes statistics over patients"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).requires_grad_(False)), "1 .BatchNorm1d. takes statistics"),
        (nn.Sequential(nn.BatchNorm1d(3, affine=False, track_running_stats=False).eval()), "0 .BatchNorm1d. takes statistics"),
        (nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)), "0 .InstanceNorm2d. takes statistics"),
        (nn.Sequential(nn.BatchNorm1d(3).eval()), "0 .BatchNorm1d. has no rule for weight, bias"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3)), "1 .ConvTranspose2d. has no rule for weight, bias"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "0 .MultiheadAttention. has no rule for in_proj_weight, in_proj_bias"),
        (nn.Sequential(Bare()), "0 .Bare. has no rule for scale"),
        (Bare(), "the model .Bare. has no rule for scale"),
        (nn.Sequential(Own(3, 3)), "0 .Own. has no rule for weight, bias"),
        (nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), "0 .Embedding. depends on the whole batch"),
        (tied(), "1 .Linear. shares its weight with 0 .Linear."),
    ],
)  # fmt: skip
def test_a_layer_that_cannot_be_told_apart_by_patient_is_refused_by_name(model, names):
    with pytest.raises(ValueError, match=names):
        refuse_unsuitable(model)
    with pytest.raises(ValueError, match=names):
        clipped_sums(model, lambda: pytest.fail("called"), torch.tensor([0, 1]), torch.ones(2), clip=1.0)


class Folded(nn.Module):
    """Depth is put into the batch, as slice-wise networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.slices = nn.Conv2d(1, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slices(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).flatten(1)


class Functional(nn.Module):
    """A weight that is also used without its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.layer(x), self.layer.weight)


class Overwriting(nn.Module):
    """A layer's input is changed after its use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x) * 1
        y = self.second(h)
        h += 1
        return y


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Folded(), (2, 1, 4, 5, 5), r"slices .Conv2d. was given \(8, 1, 5, 5\); expected the 2 rows"),
        (nn.Conv2d(2, 2, 3), (2, 5, 5), r"was given \(2, 5, 5\); expected the 2 rows"),
        (Functional(), (2, 3), "layer.weight is used outside of its layer"),
        (Overwriting(), (2, 3), "inputs of second .Linear. were overwritten"),
    ],
)
def test_a_use_that_hides_whose_row_it_is_is_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        clipped_sums(model, lambda: model(torch.ones(shape)).flatten(1).sum(1), torch.tensor([0, 1]), torch.ones(2), clip=1.0)


def test_shapes_that_do_not_fit_are_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"expected \(rows,\) of both"):
        clipped_sums(model, lambda: model(torch.ones(2, 3)).sum(1), torch.tensor([0, 1]), torch.ones(3), clip=1.0)
    with pytest.raises(ValueError, match=r"losses have shape \(\); expected \(2,\)"):
        clipped_sums(model, lambda: model(torch.ones(2, 3)).sum(), torch.tensor([0, 1]), torch.ones(2), clip=1.0)
