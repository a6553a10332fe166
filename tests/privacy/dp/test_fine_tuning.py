"""A generator trained under differential privacy: whose rows go into a step, what is public in it, and what the ledger knows."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth.diffusion.conditions import asked_for, conditions_of, known_from_elsewhere, of_rows, public_marginals
from medsynth.diffusion.generator import Generator
from medsynth.language.vocabulary import HEART
from medsynth.ledger import CoverError, Ledger
from medsynth.models.weights import shipped_autoencoder, shipped_denoiser
from medsynth.phantoms.heart.heart import cardiac
from medsynth.privacy.dp import central_images as central_module
from medsynth.privacy.dp import fine_tuning, training
from medsynth.privacy.dp.fine_tuning import PrivateRows, train_privately
from medsynth.settings.config import PrivacyConfig, SamplingConfig
from medsynth.training import step_generator

PRIVACY = PrivacyConfig(steps=2, batch=3, epsilon=8.0, draws=2, trainable="attention", learning_rate=1e-2)


@pytest.fixture(scope="module")
def hearts():
    """Of five patients, one with one stack and one with three."""
    drawn = cardiac(patients=5, slices=8, size=32, population="private", seed=3)
    return drawn.select([0, 2, 3, 4, 5, 6, 7, 8, 9, 9]).with_images(
        drawn.images[[0, 2, 3, 4, 5, 6, 7, 8, 9, 8]], name="ward", role="private"
    )


@pytest.fixture
def settings(tiny, shipped, cache):
    return {"denoiser": tiny.denoiser_3d, "diffusion": tiny.diffusion, "sampling": SamplingConfig(images=1, steps=2)}


def rows_of(images, draws=2, diffusion=None, tiny=None):
    number = np.unique(images.patient, return_inverse=True)[1]
    conditions = conditions_of(images, HEART)
    return PrivateRows.of(images, number, conditions, shipped_autoencoder(), diffusion or tiny.diffusion, draws)


def asked(private, patients, seed=0):
    seen = {}

    def model(noisy, timesteps, condition):
        seen.update(noisy=noisy, timesteps=timesteps, condition=condition)
        return torch.zeros_like(noisy)

    model.parameters = lambda: iter([torch.zeros(1)])
    rows = private.rows(model, torch.tensor(patients), 0, [step_generator(seed, p) for p in patients])
    return rows, rows.losses(), seen


def test_latents_are_encoded_once_for_a_set_and_anew_for_another(hearts):
    autoencoder = shipped_autoencoder()
    once, again = (fine_tuning._latents(hearts, autoencoder) for _ in range(2))
    other = fine_tuning._latents(hearts.select(np.arange(len(hearts))[::-1]), autoencoder)
    assert again is once
    torch.testing.assert_close(other.flip(0), once, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(other, once, atol=0.1)


def test_a_patient_weighs_one_whatever_its_records_and_draws(hearts, tiny, shipped):
    rows, losses, _ = asked(rows_of(hearts, draws=3, tiny=tiny), [0, 1, 4])
    assert torch.bincount(rows.patient).tolist() == [3, 6, 9] and losses.shape == (18,)
    totals = torch.zeros(3).index_add_(0, rows.patient, rows.weight)
    torch.testing.assert_close(totals, torch.ones(3))


def test_the_rows_of_a_patient_do_not_depend_on_the_others(hearts, tiny, shipped):
    """What is scaled by a statistic of all, or drawn from shared randomness, would."""
    everybody = asked(rows_of(hearts, tiny=tiny), [0, 1, 2, 3, 4])
    alone = asked(rows_of(hearts.of_patients([hearts.patient[-1]]), tiny=tiny), [0], seed=0)
    mine = everybody[0].patient == 4
    # the randomness of a patient is that of its own generator
    again = asked(rows_of(hearts, tiny=tiny), [4])
    for key in ("noisy", "timesteps"):
        torch.testing.assert_close(everybody[2][key][mine], again[2][key], rtol=1e-4, atol=1e-4)
    private = rows_of(hearts, tiny=tiny)
    lonely = rows_of(hearts.of_patients([hearts.patient[-1]]), tiny=tiny)
    torch.testing.assert_close(private.latents[list(private.records[4])], lonely.latents, rtol=1e-4, atol=1e-4)
    assert len(alone[1]) == 6


class CaughtError(Exception):
    pass


def clipped_sum_of(images, settings, monkeypatch):
    """What a step adds up over everybody, before the noise."""
    kept = {}

    def caught(model, rows_of, *, keys, config, seed, **_):
        kept.update(training._clipped_sum(model, rows_of, torch.arange(len(keys)), keys, config, seed, 0))
        raise CaughtError

    monkeypatch.setattr(fine_tuning, "fit_privately", caught)
    with pytest.raises(CaughtError):
        train_privately(images, privacy=PRIVACY, **settings, ledger=Ledger())
    return torch.cat([v.flatten() for v in kept.values()])


def test_without_one_patient_the_sum_moves_by_the_clip_at_most(hearts, settings, monkeypatch):
    """Also where the others are numbered anew, as a folder without that patient's files would give them."""
    left = hearts.of_patients(np.unique(hearts.patient)[1:])
    left = replace(left, patient=np.unique(left.patient, return_inverse=True)[1])
    both = [clipped_sum_of(images, settings, monkeypatch) for images in (hearts, left)]
    assert 0.9 * PRIVACY.clip < float((both[0] - both[1]).norm()) < 1.001 * PRIVACY.clip


def test_one_image_of_two_patients_is_refused(hearts, settings):
    twice = hearts.with_images(hearts.images[[0, 1, 2, 3, 4, 5, 6, 7, 8, 0]])
    with pytest.raises(ValueError, match="ward: rows 0 and 9 are one image of two patients; a person who counts as two"):
        train_privately(twice, privacy=PRIVACY, **settings, ledger=Ledger())


def test_timesteps_cover_the_schedule_within_each_patient(hearts, tiny, shipped):
    diffusion = replace(tiny.diffusion, timesteps=1000)
    rows, _, seen = asked(rows_of(hearts, draws=4, diffusion=diffusion), [0, 3])
    for patient in (0, 1):
        n = int((rows.patient == patient).sum())
        strata = (seen["timesteps"][rows.patient == patient].double() / 1000 * n).floor()
        assert sorted(strata.tolist()) == list(range(n))


def test_the_draws_of_a_record_share_what_they_are_asked_by(hearts, tiny, shipped):
    _, _, seen = asked(rows_of(hearts, draws=4, diffusion=replace(tiny.diffusion, label_dropout=0.5)), [0, 1, 2, 3, 4])
    each = seen["condition"].view(-1, 4, len(HEART))
    assert torch.equal(each.isnan(), each[:, :1].isnan().expand_as(each)) and each.isnan().any() and not each.isnan().all()


def test_it_starts_from_public_weights_and_changes_what_is_trained_alone(hearts, settings):
    ledger = Ledger()
    made = train_privately(hearts, privacy=PRIVACY, **settings, ledger=ledger)
    public, trained = shipped_denoiser("heart").state_dict(), made.model.state_dict()
    changed = {name for name in public if not torch.equal(public[name], trained[name])}
    assert changed and not any("conv.weight" in name for name in changed) and any("attn.to_q.weight" in name for name in changed)
    assert made.refiner is None and made.like.role == made.model.role == "private" and len(made.like) == 0
    [entry] = made.entries
    assert entry.stage == "train denoiser" and entry.patients == 5 and ledger.entries() == [entry]
    mechanism = entry.mechanism
    assert mechanism.name == "dp-sgd" and 7.9 < mechanism.epsilon <= 8.0 and mechanism.delta == 1e-6
    assert (mechanism.q, mechanism.steps, mechanism.randomness) == (0.6, 2, "seeded") and mechanism.sigma > 0
    assert made.sentence.startswith("(epsilon = 8, delta = 1e-06) per patient covers")


def test_it_is_found_again_and_another_seed_or_epsilon_is_another_run(hearts, settings, monkeypatch):
    calls, fit = [], fine_tuning.fit_privately
    monkeypatch.setattr(fine_tuning, "fit_privately", lambda *a, **k: (calls.append(k["config"].epsilon), fit(*a, **k))[1])
    ledger = Ledger()
    for privacy, seed in ((PRIVACY, 0), (PRIVACY, 0), (PRIVACY, 1), (replace(PRIVACY, epsilon=1.0), 0)):
        train_privately(hearts, privacy=privacy, **settings, ledger=ledger, seed=seed)
    assert calls == [8.0, 8.0, 1.0] and len(ledger.entries()) == 3
    total = ledger.total(hearts)
    assert 16.9 < total.epsilon <= 17.0 and total.delta == pytest.approx(3e-6)


def test_without_a_promise_nothing_is_claimed(hearts, settings):
    made = train_privately(hearts, privacy=replace(PRIVACY, epsilon=math.inf), **settings, ledger=Ledger())
    assert made.sentence.startswith("Nothing is proved") and made.entries[0].mechanism.name == "none"


def test_adapters_leave_an_ordinary_generator_that_is_saved_and_read(hearts, settings, tmp_path):
    made = train_privately(hearts, privacy=replace(PRIVACY, trainable="lora"), **settings, ledger=Ledger())
    again = Generator.load(made.save(tmp_path / "run"))
    assert again.entries == tuple(replace(e, content_hash="") for e in made.entries) and again.sentence == made.sentence
    assert hearts.content_hash not in (tmp_path / "run" / "generator.json").read_text()
    wishes = public_marginals(made.like, made.names, 3, seed=0)
    np.testing.assert_array_equal(again.draw(wishes).images, made.draw(wishes).images)
    assert made.draw(wishes).images.shape == (3, 1, 8, 32, 32)


def test_a_run_that_begins_with_central_images_costs_no_more_and_draws_them_once(hearts, settings, monkeypatch):
    drawn, central = [], fine_tuning.central_images
    monkeypatch.setattr(central_module, "PUBLIC_PATIENTS", 16)
    monkeypatch.setattr(fine_tuning, "central_images", lambda *a, **k: (drawn.append(k), central(*a, **k))[1])
    warm = replace(PRIVACY, central=0.2)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fine_tuning, "fit_privately", killed)
        with pytest.raises(KeyboardInterrupt):
            train_privately(hearts, privacy=warm, **settings, ledger=Ledger())
    ledger = Ledger()
    made = train_privately(hearts, privacy=warm, **settings, ledger=ledger)
    assert len(drawn) == 1 and drawn[0]["patients"] == 5
    mechanism, plain = made.entries[0].mechanism, fine_tuning.promised(PRIVACY, 5)
    assert 7.9 < mechanism.epsilon <= 8.0 and mechanism.sigma > plain.sigma
    assert len(ledger.entries()) == 1


def test_conditions_of_private_rows_are_refused(hearts, settings):
    made = train_privately(hearts, privacy=PRIVACY, **settings, ledger=Ledger())
    with pytest.raises(CoverError, match="claims dp-sgd"):
        made.draw(of_rows(hearts, made.names, 2, seed=0, ledger=Ledger()))
    # nor by a table that was cut out of the set
    for table in (hearts.attributes, hearts.attributes.iloc[[1, 2]].reset_index(drop=True).assign(age=50)):
        with pytest.raises(CoverError, match="claims dp-sgd"):
            made.draw(asked_for(made.like, made.names, table))
    attacked = asked_for(made.like, made.names, known_from_elsewhere(hearts.attributes.assign(file="p00.nii", patient_id="p00")))
    assert not {"file", "patient_id"} & set(made.draw(attacked).attributes)


def test_a_run_that_is_trained_again_is_paid_for_again(hearts, settings, cache):
    """Secure noise is another each time: two releases, two lines."""
    ledger, secure = Ledger(), replace(PRIVACY, randomness="secure")
    for _ in range(2):
        train_privately(hearts, privacy=secure, **settings, ledger=ledger)
    assert len(ledger.entries()) == 1 and "with a promise: 1, together (epsilon = 8," in ledger.together(hearts)
    for folder in (cache / "runs").glob("private-denoiser-*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    train_privately(hearts, privacy=secure, **settings, ledger=ledger)
    assert len(ledger.entries()) == 2 and 15.9 < ledger.total(hearts).epsilon <= 16


def test_from_scratch_nothing_public_is_read(hearts, settings, monkeypatch):
    monkeypatch.setattr(fine_tuning, "shipped_denoiser", lambda kind: pytest.fail("public weights"))
    scratch = replace(PRIVACY, trainable="full")
    made = train_privately(hearts, privacy=scratch, **settings, ledger=Ledger(), start="scratch")
    assert "from scratch" in made.entries[0].output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": "nothing"}, "start 'nothing'; expected one of"),
        ({"privacy": replace(PRIVACY, batch=6)}, "5 patients, and a step expects 6"),
        ({"privacy": replace(PRIVACY, delta=0.3)}, "delta is 0.3 for 5 patients; expected less than 1/5"),
    ],
)
def test_what_cannot_be_is_named_and_leaves_no_line(hearts, settings, changes, said):
    ledger = Ledger()
    with pytest.raises(ValueError, match=said):
        train_privately(hearts, **{"privacy": PRIVACY} | settings | changes, ledger=ledger)
    assert ledger.entries() == []


def test_another_architecture_is_told_how_to_go_on(hearts, settings):
    with pytest.raises(ValueError, match="ward: the public weights have another architecture"):
        train_privately(
            hearts, privacy=PRIVACY, **settings | {"denoiser": replace(settings["denoiser"], residual_blocks=2)}, ledger=Ledger()
        )


def test_patients_without_attributes_can_be_trained_on(hearts, settings):
    bare = replace(hearts, attributes=pd.DataFrame(index=range(len(hearts))))
    made = train_privately(bare, privacy=PRIVACY, **settings, ledger=Ledger())
    assert all(torch.isfinite(p).all() for p in made.model.parameters())
