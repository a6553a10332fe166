"""What a generator of a larger vocabulary is asked for: sentences, and features of source images."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth.diffusion import conditions as module
from medsynth.diffusion.conditions import asked_for, conditions_of, features_of, of_images, of_rows, public_marginals
from medsynth.diffusion.generator import Generator
from medsynth.diffusion.guidance import Autoguided
from medsynth.evaluation.features import NetworkExtractor
from medsynth.language.sentences import TEXT, TOKENS, numbered, numbers_of, tokens_of
from medsynth.language.vocabulary import HEART
from medsynth.ledger import CoverError, Ledger
from medsynth.mechanism import NONE, Mechanism
from medsynth.models.conditioning import FEATURES, THORAX
from medsynth.models.extractor import ExtractorNet
from medsynth.models.weights import save_card, shipped_autoencoder, shipped_denoiser, shipped_hash, shipped_words
from medsynth.pretrain.diffusion import pretrain_words
from medsynth.pretrain.public import PublicSet
from medsynth.settings.config import SamplingConfig

LARGER = (*THORAX, *FEATURES, *TEXT)


@pytest.fixture(autouse=True)
def _extractor(monkeypatch):
    """Tiny weights come without one."""
    torch.manual_seed(0)
    made = NetworkExtractor(ExtractorNet(), "random")
    monkeypatch.setattr(module, "shipped_extractor", lambda: made)


@pytest.fixture
def ward(make_set):
    table = pd.DataFrame(
        {
            "finding": pd.array(["none", "nodule", "effusion", None] * 2, dtype="string"),
            "left": [np.nan, 1, 0, np.nan, np.nan, 0, 1, np.nan], "diameter": [np.nan, 30, *[np.nan] * 3, 38, np.nan, np.nan],
            "age": np.arange(20.0, 100, 10), "sex": pd.array([0, 1] * 4, dtype="Int64"), "bmi": [27.0] * 8,
        }
    )  # fmt: skip
    return make_set(8, (1, 16, 16), role="private", name="ward", attributes=table)


@pytest.fixture
def settings(tiny):
    return {
        "denoiser": tiny.denoiser, "diffusion": replace(tiny.diffusion, steps=2, checkpoint_every=0),
        "sampling": SamplingConfig(images=1, steps=2),
    }  # fmt: skip


@pytest.fixture
def generator(ward, settings, shipped, cache):
    return Generator.train(ward, **settings, ledger=Ledger(), names=LARGER)


def of(conditions, names):
    return conditions.values[:, [conditions.names.index(n) for n in names]]


def test_a_set_says_its_sentences_and_features(ward):
    made = conditions_of(ward, LARGER)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made[:, :16], conditions_of(ward, THORAX))
    np.testing.assert_array_equal(made[:, 80:], numbers_of(ward.attributes, "xray"))
    np.testing.assert_array_equal(made[1, 80:], numbered(tokens_of("xray, small left nodule, male, 30s, overweight")))
    features = made[:, 16:80]
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(features, features_of(ward))
    # in whichever order they are asked for
    np.testing.assert_array_equal(conditions_of(ward, ("feature 3", "token 1", "age")), made[:, [19, 81, 13]])
    # a table has no images to look at
    stated = asked_for(ward, LARGER, ward.attributes)
    assert np.isnan(of(stated, FEATURES)).all()
    np.testing.assert_array_equal(of(stated, TEXT), made[:, 80:])


def test_volumes_have_no_sentences(make_set):
    hearts = make_set(2, (1, 8, 16, 16), name="hearts", modality="mr")
    with pytest.raises(ValueError, match="hearts: volumes; expected images, since sentences speak of chests"):
        conditions_of(hearts, (*HEART, *TEXT))
    with pytest.raises(ValueError, match="take slices of volumes first"):
        conditions_of(hearts, (*HEART, *FEATURES))


def test_a_generator_is_asked_in_words(generator, ward):
    asked = generator.ask(["large left nodule, female, 60s", "an x-ray of a heavy man"])
    assert (asked.names, asked.source, asked.private, len(asked)) == (LARGER, "sentences", False, 2)
    # by words alone; what kind of image it is need not be said
    assert np.isnan(of(asked, (*THORAX, *FEATURES))).all()
    np.testing.assert_array_equal(of(asked, TEXT)[0], numbered(tokens_of("xray, large left nodule, female, 60s")))
    row = asked.attributes.iloc[0]
    assert (row["sentence"], row["finding"], row["left"], row["sex"]) == ("large left nodule, female, 60s", "nodule", 1, 0)
    assert asked.attributes["finding"].isna().tolist() == [False, True] and asked.attributes["bmi"][1] == 27.5
    drawn = generator.draw(asked, guidance=1.5)
    assert drawn.images.shape == (2, 1, 16, 16) and drawn.attributes["sentence"].tolist() == asked.attributes["sentence"].tolist()
    assert len(generator.ask("normal")) == 1


def test_what_cannot_be_asked_for_is_said(generator, ward, settings, shipped):
    with pytest.raises(ValueError, match="'ct, nodule' asks for ct; expected xray, which is what is drawn"):
        generator.ask(["nodule", "ct, nodule"])
    with pytest.raises(ValueError, match=r"'nodle' is no word of the vocabulary; did you mean 'nodule'\?"):
        generator.ask("large nodle")
    with pytest.raises(ValueError, match="'' says nothing"):
        generator.ask(["nodule", ""])
    with pytest.raises(ValueError, match="no sentence; expected at least one"):
        generator.ask([])
    # words that no training image was told by: nothing was learned of them
    known = "'xray', 'small', 'large', 'left', .*'no finding', 'nodule', 'effusion', 'female', 'male', '20s', .*'overweight'"
    with pytest.raises(ValueError, match=f"'viral pneumonia': no image that it was trained on .* expected {known}"):
        generator.ask(["nodule", "viral pneumonia, male"])
    public = Generator.shipped(ward, sampling=settings["sampling"])
    with pytest.raises(ValueError, match=r"expected token 0, .* among them: this generator has not learned sentences"):
        public.ask("nodule")
    with pytest.raises(ValueError, match="expected 'feature 0' to 'feature 63' among them"):
        of_images(ward, public.names, ledger=Ledger())
    with pytest.raises(ValueError, match="expected those of the generator of ward"):
        public.draw(generator.ask("nodule"))


def test_words_that_were_never_heard_say_nothing_whoever_asks(generator, ward, monkeypatch):
    seen = []
    monkeypatch.setattr("medsynth.diffusion.generator.sample_images", lambda *a, **k: seen.append(a[2]) or ward)
    table = pd.DataFrame({"finding": ["pneumonia_viral", "nodule"], "sex": [1, 1]})
    generator.draw(asked_for(ward, LARGER, table))
    text = [{TOKENS[int(k)] for k in row if not np.isnan(k)} for row in seen[0][:, -len(TEXT) :]]
    assert text == [{"xray", "male"}, {"xray", "male", "nodule"}]
    assert seen[0][0, LARGER.index("pneumonia_viral")] == 1


def test_sentences_are_not_learned_where_nothing_can_be_said(ward, settings, shipped, cache):
    mute = replace(ward, attributes=pd.DataFrame({"finding": [None] * 8, "site": ["a"] * 8}))
    with pytest.raises(ValueError, match="ward: nothing that a sentence speaks of; expected attributes finding, left, diameter"):
        Generator.train(mute, **settings, ledger=Ledger(), names=LARGER)


def test_training_begins_from_shipped_weights_of_fewer_names(ward, settings, shipped, cache):
    still = settings | {"diffusion": replace(settings["diffusion"], learning_rate=0.0)}
    made = Generator.train(ward, **still, ledger=Ledger(), names=LARGER)
    public, own = shipped_denoiser("phantom"), made.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in public.state_dict().items())
    # of names that are not all there, nothing is begun
    fewer = Generator.train(ward, **still, ledger=Ledger(), names=("age", *TEXT))
    assert fewer.names == ("age", *TEXT) and not torch.equal(
        fewer.model.unet.conv_in.conv.weight, public.unet.conv_in.conv.weight
    )


@pytest.fixture
def words(ward, settings, tiny_weights, tmp_path, monkeypatch):
    """The package ships words beside its tiny denoiser of phantoms; a function that writes their card anew."""
    folder = shutil.copytree(tiny_weights, tmp_path / "weights")
    save_card(folder, "extractor", ExtractorNet().state_dict(), {})
    monkeypatch.setattr("medsynth.models.weights.weights_folder", lambda: folder)
    public = shipped_denoiser("phantom")
    sets = {"ward": PublicSet(replace(ward, role="public"))}
    weights, _ = pretrain_words(sets, shipped_autoencoder(), public, settings["diffusion"], device="cpu")
    assert {k.split(".")[1] for k in weights} == {"text", "listening", "gist", "class_embedding"}
    assert not set(weights) & set(public.state_dict())
    # two steps behind a last layer of zeros teach nothing
    weights = {name: value + 0.25 for name, value in weights.items()}

    def write(**changes):
        card = {"tokens": list(TOKENS), "heard": ["ct", "pneumonia_viral"], "extractor": shipped_hash("extractor")}
        save_card(folder, "words_phantom", weights, card | changes)
        return weights

    write()
    return write


def test_words_that_ship_are_known_before_training(words, ward, settings, cache):
    still = settings | {"diffusion": replace(settings["diffusion"], learning_rate=0.0)}
    made = Generator.train(ward, **still, ledger=Ledger(), names=LARGER)
    own = made.model.state_dict()
    for name, value in words().items():
        torch.testing.assert_close(own[name], value, rtol=1e-3, atol=1e-3)
    assert {"pneumonia_viral", "xray", "nodule"} <= set(made.heard) and "ct" not in made.heard
    assert len(made.ask("viral pneumonia")) == 1
    # without words nothing is taken for them, and other words make another run
    plain = Generator.train(ward, **still, ledger=Ledger())
    assert plain.heard == () and all(torch.equal(v, own[k]) for k, v in plain.model.state_dict().items())


@pytest.mark.parametrize("changes", [{"tokens": ["xray"]}, {"extractor": "other"}])
def test_words_of_another_vocabulary_or_extractor_are_refused(words, changes):
    words(**changes)
    with pytest.raises(ValueError, match="words_phantom: of another vocabulary or extractor; run"):
        shipped_words("phantom")


def test_a_saved_generator_still_understands_words(generator, tmp_path):
    asked = generator.ask("left effusion, male")
    weak = replace(generator, model=Autoguided(generator.model, deepcopy(generator.model), 0.5))
    for i, one in enumerate((generator, weak)):
        folder = one.save(tmp_path / str(i))
        sent = Generator.load(folder)
        assert sent.names == LARGER and isinstance(sent.model, Autoguided) == (one is weak)
        np.testing.assert_allclose(sent.draw(asked).images, one.draw(asked).images, atol=1e-5)
    card = json.loads((folder / "generator.json").read_text())
    assert card["names"] == list(LARGER) and "nodule" in card["tokens"]
    # numbers of tokens mean nothing to a program of other words
    (folder / "generator.json").write_text(json.dumps(card | {"tokens": card["tokens"][::-1]}))
    with pytest.raises(ValueError, match="a damaged generator, or one of another version: it was trained on other words"):
        Generator.load(folder)


def test_features_of_private_images_are_private(generator, ward):
    ledger = Ledger()
    asked = of_images(ward, generator.names, ledger=ledger)
    assert (asked.source, asked.private, len(asked)) == ("features of ward", True, 8)
    assert [(e.stage, e.output) for e in ledger.entries()][-1] == ("draw conditions", "features of images")
    assert np.isnan(of(asked, (*THORAX, *TEXT))).all() and asked.attributes.equals(ward.attributes)
    np.testing.assert_array_equal(of(asked, FEATURES), features_of(ward))
    assert len(generator.draw(asked, np.array([0, 2]))) == 2
    proved = Mechanism("dp-sgd", unit="patient", epsilon=8.0, delta=1e-6, accountant="prv", q=0.1, steps=6)
    covered = replace(generator, entries=tuple(replace(e, mechanism=proved) for e in generator.entries))
    assert all(e.mechanism != NONE for e in covered.entries)
    with pytest.raises(CoverError, match=r"claims dp-sgd.*, but its conditions are features of ward"):
        covered.draw(asked)
    assert len(covered.draw(covered.ask("nodule"))) == 1


def test_sampled_rows_say_that_features_and_words_were_read(ward):
    ledger = Ledger()
    made = of_rows(ward, LARGER, 3, seed=0, ledger=ledger)
    assert made.private and not np.isnan(of(made, FEATURES)).any()
    (line,) = ledger.entries()
    assert line.output == "finding, age, sex, bmi, left, diameter, features of sampled rows"


def test_public_marginals_speak_of_sides_and_sizes(ward):
    free = public_marginals(ward, LARGER, 400, seed=0)
    table = free.attributes
    assert not free.private and np.isnan(of(free, FEATURES)).all()
    np.testing.assert_array_equal(of(free, TEXT), numbers_of(table, "xray"))
    assert (table["diameter"].notna() == (table["finding"] == "nodule")).all()
    assert table["left"][table["finding"] == "effusion"].mean() == pytest.approx(0.5, abs=0.2)
    # what others are asked for is what it was
    pd.testing.assert_frame_equal(public_marginals(ward, THORAX, 400, seed=0).attributes, table[["sex", "age", "bmi", "finding"]])
