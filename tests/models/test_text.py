"""A denoiser of a larger vocabulary: it begins as the one of fewer conditions, and listens to words once it is trained."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from medsynth.diffusion.sample import guided_prediction
from medsynth.diffusion.schedule import noise_schedule, objective
from medsynth.diffusion.train import train_latents
from medsynth.language.sentences import TEXT, TOKENS, numbered, numbers_of, tokens_of
from medsynth.models.conditioning import ALONE, FEATURES, THORAX, drop, families
from medsynth.models.denoiser import Denoiser
from medsynth.models.extractor import DIM
from medsynth.models.text import TextEncoder
from medsynth.models.weights import shipped_denoiser
from medsynth.phantoms.thorax.thorax import thorax
from medsynth.settings.config import DenoiserConfig, DiffusionConfig

LARGER = (*THORAX, *FEATURES, *TEXT)
SMALL = DenoiserConfig(channels=(16, 32), attention=(False, True), head_channels=16)


def denoiser(names: tuple[str, ...], config: DenoiserConfig = SMALL, channels: int = 1, seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(config, names, channels).eval()


def noticeable(model: Denoiser) -> Denoiser:
    """As a trained one: nothing that it holds is zero."""
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return model


def asked(n: int, names: tuple[str, ...]) -> torch.Tensor:
    made = torch.rand(n, len(names), generator=torch.Generator().manual_seed(0))
    said = numbered(tokens_of("ct, large left nodule, female, 60s"))
    for k, name in enumerate(names):
        if name in TEXT:
            made[:, k] = float(said[TEXT.index(name)])
    made[0] = torch.nan
    return made


def noisy(n: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=made), torch.randint(1000, (n,), generator=made)


def test_features_are_those_of_the_extractor():
    assert len(FEATURES) == DIM
    assert families(LARGER) == {
        "values": list(range(16)), "features": list(range(16, 80)), "text": list(range(80, 80 + len(TEXT))),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["phantom", "real"])
def test_a_larger_vocabulary_begins_as_the_shipped_denoiser_bit_by_bit(kind):
    public = shipped_denoiser(kind)
    larger = denoiser(LARGER, public.config, public.latent_channels)
    larger.begin_as(public)
    x, times = noisy(3, public.latent_channels, 8, 8)
    condition = asked(3, LARGER)
    with torch.no_grad():
        assert torch.equal(larger(x, times, condition), public(x, times, condition[:, : len(THORAX)]))
    shipped = public.state_dict()
    assert all(torch.equal(v, shipped[k]) for k, v in larger.state_dict().items() if k in shipped)


@pytest.mark.parametrize(("sides", "channels"), [((6, 5), (16, 24, 32)), ((4, 6, 5), (16, 32))])
def test_the_network_of_words_is_the_plain_one_until_it_listens(sides, channels):
    config = DenoiserConfig(channels, 2, (False,) * (len(channels) - 1) + (True,), 8, len(sides))
    plain, listening = noticeable(denoiser(("age", "sex"), config, 2)), denoiser(("age", "sex", *TEXT), config, 2)
    listening.begin_as(plain)
    x, times = noisy(4, 2, *sides)
    condition = asked(4, listening.names)
    with torch.no_grad():
        expected = plain(x, times, condition[:, :2])
        assert torch.equal(listening(x, times, condition), expected)
        noticeable(listening)
        heard = listening(x, times, condition)
    assert heard.shape == x.shape and not torch.allclose(heard, expected)


def test_new_values_begin_unheard_wherever_they_stand():
    plain, larger = noticeable(denoiser(("age", "sex"))), denoiser(("smoker", "age", *FEATURES, "sex", "bmi"))
    larger.begin_as(plain)
    x, times = noisy(4, 1, 8, 8)
    condition = asked(4, larger.names)
    mine = condition[:, [larger.names.index(n) for n in plain.names]]
    torch.testing.assert_close(larger(x, times, condition), plain(x, times, mine))


def test_a_denoiser_begins_as_none_of_another_kind():
    with pytest.raises(ValueError, match="expected the architecture that it begins as"):
        denoiser(("age",)).begin_as(denoiser(("age",), DenoiserConfig(channels=(32, 32), attention=(False, True))))
    for names in (("age", *TEXT), ("sex", "age", *TEXT)):
        with pytest.raises(ValueError, match=r"expected all those of \('age', 'sex'\), in their order"):
            denoiser(names).begin_as(denoiser(("age", "sex")))


def test_the_encoder_reads_a_set_of_words_and_the_empty_text():
    torch.manual_seed(0)
    encoder = TextEncoder(len(TOKENS))
    said = torch.from_numpy(np.stack([numbered(tokens_of("left nodule, male")), numbered(tokens_of("right nodule, male"))]))
    read = encoder(torch.cat([said, torch.full_like(said[:1], torch.nan)]))
    assert read.shape[:2] == (3, len(TEXT)) and read.isfinite().all()
    # the sex is told beside another side, so it is another word in this context
    assert not torch.allclose(read[0, 2], read[1, 2])
    torch.testing.assert_close(encoder(said.flip(1)), read[:2].flip(1))


def test_every_part_of_a_larger_vocabulary_has_a_gradient():
    model = noticeable(denoiser(LARGER))
    x, times = noisy(4, 1, 8, 8)
    model(x, times, asked(4, LARGER)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_of_several_families_each_is_heard_alone_in_its_share_of_the_rows():
    columns, n = families(LARGER), 6000
    condition = torch.zeros(n, len(LARGER))
    apart = list(columns.values())
    dropped = drop(condition, torch.Generator().manual_seed(0), row=0.1, entry=0.0, apart=apart)
    heard = torch.stack([~dropped[:, c].isnan().any(1) for c in apart], 1)
    partly = torch.stack([dropped[:, c].isnan().any(1) & ~dropped[:, c].isnan().all(1) for c in apart], 1)
    assert not partly.any()
    shares = {k: float((heard.sum(1) == k).float().mean()) for k in range(4)}
    assert shares == pytest.approx({0: 0.1, 1: 0.9 * ALONE, 2: 0.0, 3: 0.9 * (1 - ALONE)}, abs=0.03)
    for one in heard[heard.sum(1) == 1].float().mean(0).tolist():
        assert one == pytest.approx(1 / 3, abs=0.05)
    # where there is one family, nothing changes
    for families_of in ([], [list(range(len(LARGER)))]):
        alike = drop(condition, torch.Generator().manual_seed(0), row=0.1, entry=0.2, apart=families_of)
        assert torch.equal(alike.isnan(), drop(condition, torch.Generator().manual_seed(0), row=0.1, entry=0.2).isnan())


def test_a_sentence_decides_what_a_trained_network_sees():
    """CT and MR of the same phantoms: told apart by the words alone, most where noise hides the image."""
    sets = {m: thorax(patients=24, size=16, modality=m, seed=3) for m in ("ct", "mr")}
    images = torch.cat([functional.avg_pool2d(torch.from_numpy(s.scaled()), 2) for s in sets.values()])
    said = torch.from_numpy(np.concatenate([numbers_of(s.attributes, m) for m, s in sets.items()]))
    model = denoiser(TEXT)
    config = DiffusionConfig(steps=80, batch=16, learning_rate=5e-3, warmup=5, ema=0.9)
    weights, _ = train_latents(model.train(), images, said, config)
    model.load_state_dict(weights)
    model.eval()
    times = torch.full((len(images),), 850)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    seen, target = objective(noise_schedule(config), images, noise, times)
    with torch.no_grad():
        answers = {name: model(seen, times, c) for name, c in (("right", said), ("wrong", said.roll(len(said) // 2, 0)))}
        error = {name: (answer - target).square().flatten(1).mean(1) for name, answer in answers.items()}
        assert (error["right"] < error["wrong"]).float().mean() > 0.9 and error["right"].mean() < 0.7 * error["wrong"].mean()
        # a row of NaN is the empty text that guidance goes away from
        null = model(seen, times, torch.full_like(said, torch.nan))
        guided = guided_prediction(model, seen, torch.tensor(850), said, 2.0)
    assert null.isfinite().all()
    torch.testing.assert_close(guided, 2 * answers["right"] - null, atol=1e-4, rtol=1e-4)
