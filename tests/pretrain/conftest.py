"""What tests of public and unseen people share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def real_folder(tmp_path: Path, public_sets_of: Callable[[int, int], None]) -> Path:
    """Files of the names and conventions of the real sets, with other content: patients 0 to 7."""
    rng = np.random.default_rng(0)
    n = 8
    public_sets_of(n, n)
    base = {"patient": np.arange(n), "label": np.arange(n) % 2, "split": np.array(["train"] * 4 + ["val"] * 2 + ["test"] * 2)}

    def write(name: str, size: int, **arrays: object) -> None:
        np.savez(tmp_path / f"{name}.npz", **base | {"image": rng.integers(1, 256, (n, size, size), dtype=np.uint8)} | arrays)

    role = np.array(["public", "public", "private", "private", *["eval"] * 4])
    write("cxr_kermany_128", 128, role=role, subtype=np.arange(n) % 3)
    write("cxr_nih1000_64", 64)
    write("cxr_covid_256", 256, license=np.array(["CC BY 4.0", "CC BY-NC-SA"] * 4))
    ct = {"image": rng.integers(-900, 300, (n, 32, 32), dtype=np.int16), "collection": np.array(["LIDC", "NLST"] * 4)}
    write("ct_tcia_hu_256", 32, **ct, license=np.array(["CC BY 4.0", "CC BY-NC 4.0"] * 4))
    volumes = {"volume": rng.integers(1, 256, (n, 48, 12, 10), dtype=np.uint8)}
    for name in ("mri_hippocampus_3d", "mri_acdc_3d"):
        np.savez(tmp_path / f"{name}.npz", **{k: v for k, v in base.items() if k != "label"}, **volumes)
    return tmp_path
