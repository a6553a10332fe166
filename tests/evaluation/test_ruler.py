"""The study of an extractor as a ruler, with extractors whose behaviour is known."""

import numpy as np
import pandas as pd
import pytest

from medsynth.evaluation import ruler
from medsynth.evaluation.statistics import generator
from medsynth.imageset import ImageSet
from medsynth.results import table_of

NAMED = {"chapter": "data", "dataset": "steps"}


class Means:
    """Four features that see the class (mean), noise and blur (spread of differences)."""

    name, dim = "means", 4

    def __call__(self, images, *, batch=256):
        x = images.images[:, 0].astype(np.float64)
        rough = np.abs(np.diff(x, axis=2)).mean((1, 2))
        return np.stack([x.mean((1, 2)), rough, x[:, :8].mean((1, 2)), x.std((1, 2))], 1)


class Blind:
    """Features that have nothing to do with the images."""

    name, dim = "blind", 4

    def __call__(self, images, *, batch=256):
        return generator(9).normal(size=(len(images), 4))


@pytest.fixture(scope="module")
def images():
    rng = generator(0)
    label = rng.integers(0, 3, 240)
    pixels = 0.3 + 0.15 * label[:, None, None] + 0.1 * rng.random((240, 16, 16)) + 0.02 * rng.normal(size=(240, 1, 1))
    return ImageSet(
        images=pixels[:, None], patient=np.arange(240) // 2, unit="1", range=(0, 1), name="steps",
        attributes=pd.DataFrame({"finding": label}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def label(images):
    return images.attributes["finding"].to_numpy(dtype=int)


def test_distances_rise_for_a_seeing_extractor_and_not_for_a_blind_one(images, label):
    rows = ruler.response(Means(), images, label, **NAMED, seed=0, splits=5)
    rising = ruler.rises(rows)
    assert rising["means", "steps", "noise", "fid"] and rising["means", "steps", "noise", "kid"]
    for metric in ("fid", "kid"):
        curve = [r.value for r in rows if r.extra["perturbation"] == "dropped class" and r.metric == metric]
        assert curve[-1] > curve[-2] > curve[0]
    assert not all(ruler.rises(ruler.response(Blind(), images, label, **NAMED, seed=0, splits=5)).values())


def test_rows_are_tidy_and_levels_of_one_kind_have_one_size(images, label):
    rows = ruler.response(Means(), images, label, **NAMED, seed=0, splits=3)
    table = table_of(rows)
    assert {(r.chapter, r.dataset, r.arm, r.seed, r.n_of, *r.extra) for r in rows} == {
        ("data", "steps", "means", 0, "patients", "perturbation", "strength", "rows")
    }
    assert (table.groupby("perturbation")["rows"].nunique() == 1).all()
    assert (table["n"] == 120).all() and (table["low"] <= table["value"]).all()
    assert len(table) == 2 * (len(ruler.NOISE) + len(ruler.BLUR) + len(ruler.DROPPED))


class Many(Means):
    """More features than half of the patients."""

    dim = 31

    def __call__(self, images, *, batch=256):
        return np.concatenate([super().__call__(images), generator(1).normal(size=(len(images), 27))], 1)


def test_few_patients_are_measured_by_kid_alone_however_many_images_they_have(images, label):
    # 120 rows a half of 60 patients; 2 d = 62
    assert {r.metric for r in ruler.response(Many(), images, label, **NAMED, seed=0, splits=2)} == {"kid"}
    assert {r.metric for r in ruler.power(Many(), images, label, **NAMED, seed=0, splits=10)} == {"z_kid"}


def test_each_split_counts_both_ways_round(images, label):
    found = ruler.response(Means(), images, label, **NAMED, seed=0, splits=1)
    rows = {r.extra["strength"]: r for r in found if r.extra["perturbation"] == "noise"}
    a, b = ruler.patient_halves(images.patient, seed=0, splits=1)[0]
    x, y = Means()(images), Means()(ruler.noisy(images, 0.2, seed=0))
    both = [ruler.kid_value(x[i], y[j], images.patient[i], images.patient[j]) for i, j in ((a, b), (b, a))]
    assert rows[0.2].metric == "kid" and rows[0.2].value == pytest.approx(np.mean(both))


def test_power_sees_a_thinned_class_and_copies_only_with_eyes(images, label):
    seeing, blind = (
        table_of(ruler.power(x, images, label, **NAMED, seed=0, splits=30)).set_index(["perturbation", "metric"])["value"]
        for x in (Means(), Blind())
    )
    assert set(seeing.index.get_level_values(0)) == {f"thinned class {c}" for c in (0, 1, 2)} | {"thinned class", "copies"}
    assert seeing["thinned class 0", "z_fid"] > 0.3 > blind["thinned class 0", "z_fid"]
    assert seeing["copies", "z_fid"] > 0


def test_z_is_the_shift_in_floor_widths():
    unchanged = generator(0).normal(size=400)
    z = ruler._z(unchanged + 3, unchanged, 10, seed=0)
    assert z.value == pytest.approx(3 / unchanged.std()) and z.low < z.value < z.high and z.n == 10


def test_copies_replace_exactly_their_share_by_one_row_that_stays():
    rows = ruler._with_copies(np.arange(100), 5, generator(0))
    values, counts = np.unique(rows, return_counts=True)
    assert len(rows) == 100 and sorted(counts)[-2:] == [1, 6] and len(values) == 95


def test_noise_depends_on_the_row_alone_and_blur_on_the_width(images):
    some = images.select(np.arange(3))
    np.testing.assert_array_equal(ruler.noisy(images, 0.1, seed=4).images[:3], ruler.noisy(some, 0.1, seed=4).images)
    wide = some.with_images(np.repeat(np.repeat(some.images, 4, axis=2), 4, axis=3))
    small, large = ruler.blurred(some, 4.0).images, ruler.blurred(wide, 4.0).images
    np.testing.assert_allclose(large[:, :, 2::4, 2::4], small, atol=0.01)
    assert ruler.noisy(images, 5.0, seed=0).images.max() == 1


def test_the_largest_class_holds_at_most_half():
    assert ruler.largest_class(np.array(["a"] * 6 + ["b"] * 3 + ["c"] * 2)) == "b"
    with pytest.raises(ValueError, match="finer labels"):
        ruler.largest_class(np.zeros(4))


def test_a_split_that_cannot_show_a_missing_class_is_passed_over(images, monkeypatch):
    kept, original = [], ruler._dropped

    def seen(a, b, label, dropped, *rest):
        kept.append(len(np.unique(few.patient[b][label[b] != dropped])))
        assert (label[a] == dropped).mean() >= (label[b] == dropped).mean() > 0
        return original(a, b, label, dropped, *rest)

    monkeypatch.setattr(ruler, "_dropped", seen)
    few = images.select(np.arange(48))  # 24 patients, 12 a half
    halves = ruler.patient_halves(few.patient, seed=0, splits=10)
    for rare in (2, 12):
        kept.clear()
        rows = ruler.response(Means(), few, np.where(few.patient < rare, "rare", "b"), **NAMED, seed=0, splits=10)
        assert min(kept) >= 6
        members = [[int((np.unique(few.patient[half]) < rare).sum()) for half in pair] for pair in halves]
        # equal halves count both ways round, others in one direction
        directions = [(a, b) for pair in members for a, b in (pair, pair[::-1])]
        assert len(kept) == 5 * sum(a >= b > 0 and 12 - b >= 6 for a, b in directions) < 5 * 20
        assert all(np.isfinite(r.value) for r in rows)
    # no half keeps six of eleven patients: nothing can be said
    rows = ruler.response(Means(), few.select(np.arange(22)), np.arange(22) // 2 % 2, **NAMED, seed=0, splits=10)
    assert "dropped class" not in {r.extra["perturbation"] for r in rows}


def test_a_class_leaves_in_the_share_that_is_stated():
    rng = np.random.default_rng(0)
    a, b = np.arange(400), rng.permutation(np.arange(400, 800))
    label = np.where(np.arange(800) % 4 == 0, "rare", "other")  # 100 of the 400 in b
    shares = []
    for level in ruler.DROPPED:
        drawn = [ruler._dropped(a, b, label, "rare", level, 300, 0, split) for split in range(50)]
        assert all(len(x) == len(y) == 300 and set(y) <= set(b.tolist()) for x, y in drawn)
        shares.append(np.mean([(label[y] == "rare").mean() for _, y in drawn]))
        # of one split, levels differ in few rows
        assert len(set(drawn[0][1]) & set(ruler._dropped(a, b, label, "rare", 0.0, 300, 0, 0)[1])) >= 300 - 100 * level
    np.testing.assert_allclose(shares, [(1 - v) / (4 - v) for v in ruler.DROPPED], atol=0.01)


def test_whether_a_curve_rises_is_a_row_of_its_own(images, label):
    levels = ruler.response(Means(), images, label, **NAMED, seed=4, splits=2)
    rows = ruler.rise_rows(levels)
    assert {(r.extra["perturbation"], r.metric.split()[0]): r.value for r in rows} == {
        (kind, metric): float(holds) for (_, _, kind, metric), holds in ruler.rises(levels).items()
    }
    assert len(rows) == 6 and {(r.chapter, r.dataset, r.arm, r.seed) for r in rows} == {("data", "steps", "means", 4)}
    assert {r.metric for r in rows} == {f"{m} never falls (1 = yes)" for m in ("fid", "kid")}


@pytest.mark.parametrize(("images", "splits"), [(1000, 3), (500, 3), (260, 3), (250, 12), (49, 300)])
def test_small_sets_are_split_more_often(images, splits):
    assert ruler.enough_splits(images, 3) == splits


def test_drawn_are_kid_and_fid_as_a_multiple_of_what_it_is_without_damage(images, label):
    levels = ruler.response(Means(), images, label, **NAMED, seed=0, splits=2)
    drawn, raw = ruler.panels(levels), table_of(levels)
    assert drawn.panel.drop_duplicates().tolist() == [
        f"{score}, {kind}" for score in ("FID ratio", "KID") for kind in ("noise", "blur", "dropped class")
    ]
    noise = drawn.query("metric == 'fid' and perturbation == 'noise'").set_index("strength")
    fid = raw.query("metric == 'fid' and perturbation == 'noise'").set_index("strength")
    assert noise.value[0.0] == 1
    for column in ("value", "low", "high"):
        np.testing.assert_allclose(noise[column], fid[column] / fid.value[0.0])
    pd.testing.assert_frame_equal(
        drawn[drawn.metric == "kid"][raw.columns].reset_index(drop=True), raw[raw.metric == "kid"].reset_index(drop=True)
    )


def test_power_over_several_populations_is_their_mean_beside_each(images, label):
    named = NAMED | {"seed": 0, "splits": 10}
    halves = [images.select(np.flatnonzero(images.patient % 2 == k)) for k in (0, 1)]
    labels = [label[images.patient % 2 == k] for k in (0, 1)]
    table = table_of(ruler.power_over(Means(), halves, labels, **named)).query("perturbation == 'copies' and metric == 'z_kid'")
    each, mean = table[table.population.notna()], table[table.populations == 2]
    alone = [table_of(ruler.power(Means(), *one, **named)) for one in zip(halves, labels, strict=True)]
    alone = [t.query("perturbation == 'copies' and metric == 'z_kid'").value.item() for t in alone]
    assert each.population.tolist() == [0, 1] and each.value.tolist() == alone and alone[0] != alone[1]
    assert mean.value.item() == pytest.approx(np.mean(alone)) and mean.n.item() == 120 and each.n.tolist() == [60, 60]
    assert min(alone) <= mean.low.item() <= mean.value.item() <= mean.high.item() <= max(alone)
    # one population is no sample of populations
    assert ruler.power_over(Means(), halves[:1], labels[:1], **named) == ruler.power(Means(), halves[0], labels[0], **named)


def test_what_not_every_population_has_is_left_out_of_the_mean(images, label):
    merged = np.where(label == 2, 1, label)
    rows = ruler.power_over(Means(), [images, images], [label, merged], **NAMED, seed=0, splits=10)
    means = {r.extra["perturbation"] for r in rows if "populations" in r.extra}
    assert means == {"thinned class 0", "thinned class 1", "thinned class", "copies"}
    assert "thinned class 2" in {r.extra["perturbation"] for r in rows if "population" in r.extra}
