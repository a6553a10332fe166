"""The thorax phantom: units, determinism, persistent patients, geometry against naive references, learnable findings."""

import itertools
from dataclasses import replace

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.spatial.distance import cdist

from medsynth.language.vocabulary import MODALITIES, PHANTOM_FINDINGS
from medsynth.phantoms.thorax import radiograph as render
from medsynth.phantoms.thorax import sampling, surfaces
from medsynth.phantoms.thorax.anatomy import cage, turned, wall_thickness
from medsynth.phantoms.thorax.axial import ct
from medsynth.phantoms.thorax.growth import breathe, draw_anatomy
from medsynth.phantoms.thorax.pathology import SHARES, SIDED, carry, consolidation, draw_lesion, effusion, nodule
from medsynth.phantoms.thorax.scanner import SCANNERS, draw_scan
from medsynth.phantoms.thorax.thorax import LIMIT, SITES, thorax

LIMITS = {"xray": ("1", 0, 1), "ct": ("HU", -1000, 400), "mr": ("1", 0, 1), "pet": ("SUV", 0, 10)}


def person(seed=0, *, age=50.0, sex=1, bmi=25.0):
    return draw_anatomy(np.random.default_rng(seed), age=age, sex=sex, bmi=bmi)


def visit(seed=0, site="public", **changes):
    scan = draw_scan(np.random.default_rng(seed), SCANNERS[site])
    still = dict(shift=(0.0, 0.0, 0.0), scale=1.0, roll=0.0, yaw=0.0, tilt=0.0, border=(0.0,) * 4, enhanced=0.0)
    return replace(scan, **(still | changes))


def lesion_of(finding, seed=0, **changes):
    anatomy, lesion = draw_lesion(np.random.default_rng(seed), person(seed))
    return anatomy, replace(lesion, finding=finding, **changes)


def columns(*values):
    return tuple(np.array([v], np.float32) for v in values)


@pytest.fixture(scope="module")
def sets():
    return {m: thorax(patients=6, scans=(1, 3), modality=m, size=32, seed=3) for m in MODALITIES}


@pytest.mark.parametrize("modality", MODALITIES)
def test_units_ranges_and_names(sets, modality):
    s = sets[modality]
    unit, low, high = LIMITS[modality]
    assert (s.unit, s.range) == (unit, (low, high))
    assert s.images.dtype == np.float32 and s.images.shape == (len(s), 1, 32, 32)
    assert s.name == f"thorax-{modality}-public" and s.role == "public" and set(s.split) == {""}
    assert s.spacing == pytest.approx((SCANNERS["public"].field[modality] / 32,) * 2)
    assert np.ptp(s.images) > 0.5 * (high - low) or modality == "pet"
    assert (s.images.std((1, 2, 3)) > 0).all()


def test_attributes_agree_across_modalities(sets):
    table = sets["xray"].attributes
    assert list(table) == ["age", "sex", "bmi", "finding", *PHANTOM_FINDINGS[1:], "left", "diameter", "scan", "licence"]
    kinds = ["float64", "Int64", "float64", "string", *["Int64"] * 4, "float64", "float64", "Int64", "string"]
    assert table.dtypes.astype(str).tolist() == kinds
    assert set(table["licence"]) == {"generated"} and table["age"].between(18, 95).all()
    for name in PHANTOM_FINDINGS[1:]:
        assert table[name].tolist() == [int(f == name) for f in table["finding"]]
    for s in sets.values():
        assert s.attributes.equals(table) and (s.patient == sets["xray"].patient).all()


# mean and spread of twelve people's images, as they were before anything was said of side and size
BEFORE = {
    ("xray", "public"): (0.5178507, 0.24356239), ("xray", "private"): (0.40138865, 0.25372517),
    ("ct", "public"): (-617.3801, 433.72937), ("ct", "private"): (-702.5876, 398.37106),
    ("mr", "public"): (0.14117406, 0.17868148), ("mr", "private"): (0.12532316, 0.17199719),
    ("pet", "public"): (0.3645072, 0.63574725), ("pet", "private"): (0.26144302, 0.5503422),
}  # fmt: skip


@pytest.mark.parametrize(("modality", "population"), BEFORE)
def test_what_is_said_of_a_finding_changes_no_image(modality, population):
    s = thorax(patients=12, scans=(1, 2), size=32, modality=modality, population=population, seed=5)
    assert (s.images.mean(), s.images.std()) == pytest.approx(BEFORE[modality, population], rel=1e-5)


def test_side_and_size_of_a_finding_are_those_of_its_image():
    s = thorax(patients=60, size=32, modality="xray", seed=4)
    table = s.attributes
    sided = table["finding"].isin(SIDED)
    assert (table["left"].notna() == sided).all() and set(table["left"].dropna()) == {0.0, 1.0}
    assert (table["diameter"].notna() == (table["finding"] == "nodule")).all()
    assert table["diameter"].dropna().between(27, 41).all()
    for number, row in zip(s.patient, table.itertuples(), strict=True):
        # the same people, by hand
        rng = np.random.default_rng([4, number, 0])
        rng.normal(), rng.random(), rng.normal()
        _, lesion = draw_lesion(rng, draw_anatomy(rng, age=row.age, sex=row.sex, bmi=row.bmi))
        assert lesion.finding == row.finding
        if row.finding == "nodule":
            assert row.diameter == 2 * lesion.radius
        if row.finding in ("nodule", "consolidation"):
            # x runs to the patient's left
            assert row.left == (lesion.centre[0] > 0)
    # fluid is dense, and the patient's left is on the right of the image
    fluid = s.images[(table["finding"] == "effusion").to_numpy(bool), 0]
    denser = (fluid - fluid[..., ::-1])[:, 8:, 18:30].mean((1, 2))
    left = table["left"][table["finding"] == "effusion"].to_numpy(bool)
    assert denser[left].mean() > denser[~left].mean() + 0.05


def test_scans_are_numbered_and_drawn_per_patient():
    s = thorax(patients=10, scans=(1, 3), size=16, modality="ct")
    counts = s.attributes.groupby(s.patient)["scan"].agg(["count", "max"])
    assert (counts["count"] == counts["max"] + 1).all() and set(counts["count"]) == {1, 2, 3}
    # a person stays who they are, whatever the number of scans
    one = thorax(patients=10, scans=1, size=16, modality="ct")
    assert np.array_equal(s.images[(s.attributes["scan"] == 0).to_numpy(bool)], one.images)


@pytest.mark.parametrize("modality", MODALITIES)
def test_deterministic_prefix_and_jobs(modality):
    few = thorax(patients=3, scans=2, size=24, modality=modality, seed=9)
    more = thorax(patients=5, scans=2, size=24, modality=modality, seed=9)
    assert few.content_hash == more.select(np.arange(6)).content_hash
    if modality == "ct":
        with joblib.parallel_config("loky"):
            assert thorax(patients=5, scans=2, size=24, modality=modality, seed=9, jobs=2).content_hash == more.content_hash
    assert thorax(patients=3, scans=2, size=24, modality=modality, seed=10).content_hash != few.content_hash


def test_size_changes_resolution_not_the_person():
    small, large = (thorax(patients=4, size=size, modality="ct", seed=2) for size in (32, 64))
    assert small.attributes.equals(large.attributes)
    pooled = large.images.reshape(4, 1, 32, 2, 32, 2).mean((3, 5))
    for a, b in zip(small.images, pooled, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97


def test_sites_are_private_and_share_nobody():
    sets = {site: thorax(patients=60, size=16, population=site) for site in SITES}
    assert all(s.role == "private" and s.patients == 60 for s in sets.values())
    assert len(set(np.concatenate([s.patient for s in sets.values()]))) == 180
    age = {site: s.attributes["age"].mean() for site, s in sets.items()}
    assert age["sports"] < age["community"] < age["clinic"]
    assert len({s.spacing for s in sets.values()}) == 3


def test_populations_are_disjoint_people_and_another_scanner():
    public, private = (thorax(patients=80, size=32, population=p) for p in ("public", "private"))
    assert public.patient.max() < LIMIT <= private.patient.min() and private.role == "private"
    assert private.attributes["age"].mean() > public.attributes["age"].mean() + 8
    assert private.attributes["bmi"].mean() > public.attributes["bmi"].mean() + 2
    assert private.attributes["sex"].mean() > public.attributes["sex"].mean()
    features = [s.images.reshape(-1, 4, 8, 4, 8).mean((2, 4)).reshape(-1, 16).astype(float) for s in (public, private)]

    def frechet(a, b):
        root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)

    half = features[0][:40], features[0][40:]
    assert frechet(features[0][:40], features[1][:40]) > 3 * frechet(*half)


def test_findings_come_in_their_shares():
    anatomy = person()
    drawn = [draw_lesion(np.random.default_rng(i), anatomy)[1].finding for i in range(400)]
    for name, share in zip(PHANTOM_FINDINGS, SHARES, strict=True):
        assert abs(drawn.count(name) / 400 - share) < 4 * np.sqrt(share * (1 - share) / 400)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"patients": 0}, "patients is 0"),
        ({"patients": 2.5}, "patients is 2.5"),
        ({"patients": LIMIT + 1}, "patients is"),
        ({"scans": 0}, "scans is 0"),
        ({"scans": (3, 2)}, r"scans is \(3, 2\)"),
        ({"scans": (1, 2, 3)}, r"scans is \(1, 2, 3\)"),
        ({"size": 8}, "size is 8"),
        ({"modality": "us"}, "modality 'us'"),
        ({"population": "eval"}, "population 'eval'"),
        ({"seed": -1}, "seed is -1"),
        ({"jobs": 0}, "jobs is 0"),
    ],
)
def test_bad_arguments_are_named(bad, word):
    with pytest.raises(ValueError, match=word):
        thorax(**({"patients": 1} | bad))


def test_a_larger_heart_is_larger_in_radiograph_and_ct():
    anatomy, lesion = lesion_of("none", 4)
    lesion = replace(lesion, level=anatomy.dome + 40)
    large = replace(anatomy, heart=1.3 * anatomy.heart)
    scan, site = visit(breath=0.0), SCANNERS["public"]
    scans = [[f(a, lesion, scan, site, 64, np.random.default_rng(0)) for a in (anatomy, large)] for f in (render.xray, ct)]
    rows = slice(30, 48)  # above the domes
    assert scans[0][1][rows, 18:50].mean() > scans[0][0][rows, 18:50].mean() + 0.02
    soft = [(image > -200).sum() for image in scans[1]]
    assert soft[1] > soft[0] + 40


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("finding", PHANTOM_FINDINGS[1:4])
def test_lesions_change_the_image_where_they_are(modality, finding):
    from medsynth.phantoms.thorax.thorax import _RENDER

    anatomy, lesion = lesion_of(finding, 6, side=1)
    lesion = replace(lesion, level=min(lesion.level, anatomy.dome + 70))
    lesion = replace(lesion, centre=np.array([85.0, 5.0, lesion.level]))
    pictures = [
        _RENDER[modality](anatomy, one, visit(), SCANNERS["public"], 64, np.random.default_rng(1))
        for one in (lesion, replace(lesion, finding="none"))
    ]
    change = np.abs(pictures[0] - pictures[1]) / (LIMITS[modality][2] - LIMITS[modality][1])
    if (modality, finding) == ("pet", "effusion"):
        assert change.max() < 0.08  # fluid takes up little tracer
        return
    assert change.max() > 0.08
    # the patient's left is on the right of the image
    assert change[:, 40:].sum() > 2 * change[:, :24].sum()


def test_nodule_is_solid_in_ct_and_hot_in_pet():
    from medsynth.phantoms.thorax.axial import pet

    anatomy, lesion = lesion_of("nodule", 2, radius=15.0)
    lesion = replace(lesion, centre=np.array([85.0, 5.0, -20.0]), level=-20.0)
    pixel = SCANNERS["public"].field["ct"] / 64
    row, column = round((5.0 - 8) / pixel + 31.5), round(85 / pixel + 31.5)
    site = SCANNERS["public"]
    assert ct(anatomy, lesion, visit(), site, 64, np.random.default_rng(0))[row, column] > -150
    uptake = pet(anatomy, lesion, visit(), site, 64, np.random.default_rng(0))
    assert uptake[row, column] > 3 * np.median(uptake[16:48, 16:48])


def test_contrast_agent_brightens_blood_only_in_ct():
    anatomy, lesion = lesion_of("none", 1)
    lesion = replace(lesion, level=anatomy.dome + 40)
    plain, bright = (ct(anatomy, lesion, visit(enhanced=e), SCANNERS["public"], 64, np.random.default_rng(0)) for e in (0.0, 1.0))
    gained = (bright - plain) > 100
    assert 60 < gained.sum() < 800 and abs((bright - plain)[:, :8]).max() < 20


def test_breathing_out_lifts_the_diaphragm_and_keeps_vessels_in_the_lung():
    anatomy, lesion = lesion_of("nodule", 3)
    out = breathe(anatomy, 1.0)
    assert out.dome == pytest.approx(anatomy.dome + 35) and out.aeration < anatomy.aeration
    moved = carry(lesion, anatomy, out)
    assert moved.centre[2] > lesion.centre[2] and moved.level > lesion.level
    for state in (anatomy, out):
        inside = surfaces.lung_distance(state, *state.tree.points.T) < 6
        assert inside.mean() > 0.8


def test_grid_slice_and_points_are_one_function():
    anatomy = person(5)
    x = np.linspace(-150, 150, 40, dtype=np.float32)
    y = np.linspace(-100, 100, 24, dtype=np.float32)
    z = np.linspace(110, -150, 30, dtype=np.float32)
    grid = surfaces.lung_distance(anatomy, x[None, None], y[None, :, None], z[:, None, None])
    zz, yy, xx = (v.ravel() for v in np.meshgrid(z, y, x, indexing="ij"))
    flat = surfaces.lung_distance(anatomy, xx, yy, zz).reshape(grid.shape)
    near = np.abs(flat) < 5
    assert np.abs(grid - flat)[near].max() < 0.1
    assert ((grid < 0) == (flat < 0)).mean() > 0.9999
    assert 0.1 < (flat < 0).mean() < 0.4


def test_radiograph_path_is_the_line_integral():
    anatomy, lesion = lesion_of("none", 7)
    x, z = np.linspace(-120, 120, 25, dtype=np.float32), np.linspace(60, -80, 12, dtype=np.float32)
    fast = render._soft_path(anatomy, lesion, x, z, 5.0)
    step = 0.5
    y = np.arange(-anatomy.depth - 12, anatomy.depth + 12, step, dtype=np.float32)
    body = render._body_path(anatomy, x[None], z[:, None])
    naive = np.empty_like(body)
    for i, height in enumerate(z):
        for j, side in enumerate(x):
            here = np.full_like(y, side), y, np.full_like(y, height)
            air = anatomy.aeration * (surfaces.lung_distance(anatomy, *here) < 0)
            for tube in anatomy.airways[:3]:
                air = np.maximum(air, surfaces.capsule_distance(tube, *here) < 0)
            naive[i, j] = max(body[i, j] - air.sum() * step, 0.15 * body[i, j])
    assert np.abs(fast - naive).mean() < 3 and np.corrcoef(fast.ravel(), naive.ravel())[0, 1] > 0.99


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-40, 40), min_size=9, max_size=9), st.floats(1, 15))
def test_capsule_distance_matches_the_definition(values, radius):
    start, end, point = np.array(values[:3]), np.array(values[3:6]) + 50, np.array(values[6:])
    steps = start + (end - start) * np.linspace(0, 1, 4001)[:, None]
    naive = np.linalg.norm(steps - point, axis=1).min() - radius
    fast = surfaces.capsule_distance((start, end, radius), *(np.array([v], np.float32) for v in point))
    assert fast[0] == pytest.approx(naive, abs=0.05)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 8), st.floats(1, 6), st.floats(0, 5)), min_size=1, max_size=8))
def test_splat_keeps_mass_and_centre(points):
    i, j, mass = np.array(points).T
    image = sampling.splat(i, j, mass, (8, 10))
    assert image.sum() == pytest.approx(mass.sum(), rel=1e-5, abs=1e-6)
    assert (image.sum(0) * np.arange(10)).sum() == pytest.approx((i * mass).sum(), rel=1e-4, abs=1e-5)
    assert (image.sum(1) * np.arange(8)).sum() == pytest.approx((j * mass).sum(), rel=1e-4, abs=1e-5)


def test_points_off_the_image_are_lost():
    assert sampling.splat(np.array([-3.0, 99]), np.array([2.0, 2]), np.ones(2), (8, 8)).sum() == 0


def test_blend_is_a_minimum_away_from_the_crease():
    a, b = np.array([-5.0, 0, 20], np.float32), np.array([20.0, 0, -5], np.float32)
    assert surfaces.blend(a, b, 8.0).tolist() == [-5, -2, -5]


def test_noise_is_smooth_and_of_unit_size():
    anatomy = person(1)
    x, y = np.meshgrid(np.arange(-150, 150, 2.0, dtype=np.float32), np.arange(-150, 150, 2.0, dtype=np.float32))
    flat = sampling.noise_slice(anatomy, 20, x, y, 3.0)
    assert 0.5 < flat.std() < 1.5 and np.abs(np.diff(flat, axis=1)).mean() < 0.3 * flat.std()
    volume = sampling.noise(anatomy, 20, x[:5, :5], y[:5, :5], np.float32(3.0))
    assert volume.shape == (5, 5)


def test_fluid_lies_low_when_erect_and_behind_when_supine():
    anatomy, lesion = lesion_of("effusion", side=1, fluid=80.0)
    a, b, cy = (float(v) for v in cage(anatomy, np.float32(-80)))
    low, high = columns(0.7 * a, 0, anatomy.dome - 30), columns(0.7 * a, 0, anatomy.dome + 90)
    assert effusion(lesion, anatomy, *low, posture="erect", edge=2.0) == 1
    assert effusion(lesion, anatomy, *high, posture="erect", edge=2.0) == 0
    behind, front = columns(0.4 * a, cy + 0.95 * b, -80), columns(0.4 * a, cy - 0.6 * b, -80)
    assert effusion(lesion, anatomy, *behind, posture="supine", edge=2.0) == 1
    assert effusion(lesion, anatomy, *front, posture="supine", edge=2.0) == 0
    other = columns(-0.4 * a, cy + 0.95 * b, -80)
    assert effusion(lesion, anatomy, *other, posture="supine", edge=2.0) == 0


def test_lesion_shapes():
    anatomy, lesion = lesion_of("nodule", radius=12.0, lobes=np.zeros((3, 3)))
    axis = np.arange(-20, 20.5, 1, dtype=np.float32)
    c = lesion.centre
    grid = (axis[None, None] + c[0], axis[None, :, None] + c[1], axis[:, None, None] + c[2])
    volume = nodule(lesion, *grid, 1.0).sum()
    assert volume == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)
    share = consolidation(replace(lesion, finding="consolidation"), anatomy, *grid)
    assert share.min() >= 0 and share.max() <= lesion.density + 1e-6 and share[20, 20, 20] > 0


def test_body_grows_with_weight_and_turning_keeps_lengths():
    light, heavy = person(bmi=19.0), person(bmi=38.0)
    at = np.array([1.5]), np.array([1.0]), 0.0
    assert wall_thickness(heavy, *at)[1] > wall_thickness(light, *at)[1] + 10
    points = np.random.default_rng(0).normal(0, 50, (7, 3))
    assert np.allclose(np.linalg.norm(turned(replace(light, yaw=0.3), points), axis=1), np.linalg.norm(points, axis=1))
    assert heavy.width > light.width and person(sex=0).breast > 0 == person(sex=1).breast


def test_collimation_blackens_the_border():
    anatomy, lesion = lesion_of("none")
    scan = visit(border=(0.1, 0.0, 0.0, 0.1))
    image = render.xray(anatomy, lesion, scan, SCANNERS["public"], 64, np.random.default_rng(0))
    assert image[:6].max() == 0 and image[:, -6:].max() == 0 and image[30, 20] > 0


def pairs_found(modality):
    s = thorax(patients=300, scans=2, modality=modality, size=32, seed=1)
    flat = s.images.reshape(len(s), -1)
    distance = cdist(flat, flat)
    np.fill_diagonal(distance, np.inf)
    return (s.patient[distance.argmin(1)] == s.patient).mean()


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["xray", "ct"])
def test_partners_are_found_by_pixels_sometimes(modality):
    assert 0.25 <= pairs_found(modality) <= 0.9


def auroc(score, label):
    return (score[label][:, None] > score[~label][None]).mean()


@pytest.mark.slow
def test_findings_are_learnable_but_not_by_nearest_neighbour():
    import torch
    from torch import nn

    s = thorax(patients=1000, modality="ct", size=48, seed=2)
    pixels, train = s.scaled(), np.arange(len(s)) < 800
    finding = s.attributes["finding"].to_numpy(dtype=str)
    label = np.stack([finding == name for name in PHANTOM_FINDINGS[1:]], axis=1)
    torch.manual_seed(0)
    widths = (1, 16, 32, 64, 96)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        for a, b in itertools.pairwise(widths)
    ]
    net = nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], 4))
    x, y = torch.tensor(pixels[train]), torch.tensor(label[train], dtype=torch.float32)
    steps = 300
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows, shift = torch.randint(len(x), (24,)), torch.randint(-3, 4, (2,)).tolist()
        moved = torch.roll(x[rows], shift, (2, 3))
        loss = nn.functional.binary_cross_entropy_with_logits(net(moved), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        logits = net(torch.tensor(pixels[~train])).numpy()

    flat, none = pixels.reshape(len(s), -1), finding == "none"
    for i, name in enumerate(PHANTOM_FINDINGS[1:]):
        sick = label[:, i]
        test = ~train & (sick | none)
        to_none, to_sick = (cdist(flat[test], flat[train & group]).min(1) for group in (none, sick))
        # 200 test patients: the bound of 0.8 in the large study, plus two standard errors
        assert auroc(to_none - to_sick, sick[test]) < 0.88, name
        assert auroc(logits[test[~train], i], sick[test]) > 0.9, name
