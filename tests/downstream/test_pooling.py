from hypothesis import given
from hypothesis import strategies as st

from medsynth.downstream.pooling import Share, images_sent, pooled_arms, sent

SITES = ("north", "south", "west")


@given(st.integers(3, 100))
def test_pools_are_as_large_as_a_site_and_take_alike_from_each(patients):
    arms = pooled_arms(SITES, patients)
    assert len(arms) == 11
    for arm, shares in arms.items():
        total = patients * len(shares) if arm.endswith((", all", "others' synthetic")) else patients
        assert sum(share.images for share in shares) == total
        assert max(s.images for s in shares) - min(s.images for s in shares) <= 1


def test_nobody_sends_itself_images():
    arms = pooled_arms(SITES, 10)
    assert images_sent("north alone", arms["north alone"]) == {"synthetic images sent": 0, "real images sent": 0}
    mixed = "south real + others' synthetic"
    assert sent(mixed, arms[mixed]) == [Share("synthetic", "north", 10), Share("synthetic", "west", 10)]
    assert images_sent(mixed, arms[mixed]) == {"synthetic images sent": 20, "real images sent": 0}
    assert images_sent("pooled reconstructed", arms["pooled reconstructed"]) == {
        "synthetic images sent": 0, "real images sent": 10,
    }  # fmt: skip
