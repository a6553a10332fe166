"""The one type that flows through everything: images with patients, attributes, units and splits."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth.attributes import from_arrays, to_arrays, typed
from medsynth.language.vocabulary import MODALITIES, ORIGINS, ROLES, SPLITS
from medsynth.store.hashes import bytes_hash
from medsynth.store.runs import atomic_path

_FORMAT = "medsynth.ImageSet/2"
_FORMATS = (_FORMAT, "medsynth.ImageSet/1")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """Images of patients, in a stated unit and range; immutable.

    images: float32 (n, c, *spatial), finite, inside `range`.
    patient: int (n,); equal numbers are the same person, within this set only.
    unit: the unit of the pixel values, e.g. "HU", "SUV", "1" (dimensionless).
    range: the closed interval that pixel values are declared to lie in; networks see it mapped to [-1, 1].
    role: "public", "private" or "eval"; survives every derivation, so a private set stays private.
    split: (n,) of "train", "val", "test" or ""; a patient lies in one split.
    spacing: mm per spatial axis, or None where it is not known.
    modality: "xray", "ct", "mr", "pet", or "" where it is not known.
    origin: "phantom", "scan", "synthetic", or "mixed" of several sets; what nobody described is a scan.
    people: whether a person was scanned for the images, or for what drew them: never for phantoms, always for scans.
    orientation: codes of the spatial axes towards which they run, as in NIfTI, e.g. "RAS"; None where it is not known.
    attributes: a table of n rows; float columns (NaN = missing), "Int64", "boolean" or "string" (pd.NA = missing).
    Raises ValueError naming the field, what was found and what was expected.
    """

    images: np.ndarray
    patient: np.ndarray
    unit: str
    range: tuple[float, float]
    name: str
    role: str = "public"
    split: np.ndarray | None = None
    spacing: tuple[float, ...] | None = None
    modality: str = ""
    origin: str = "scan"
    people: bool | None = None  # None: as the origin says, and of what is synthetic, yes
    orientation: str | None = None
    attributes: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        images = np.ascontiguousarray(self.images, dtype=np.float32)
        # the caller may go on writing into an array of its own; ours, and our content hash, must not change with it
        if images.flags.writeable and np.may_share_memory(images, self.images):
            images = images.copy()
        if images.ndim not in (4, 5):
            raise ValueError(f"{self.name}: images have shape {images.shape}; expected (n, c, h, w) or (n, c, d, h, w)")
        n, spatial = images.shape[0], images.shape[2:]
        low, high = (float(v) for v in self.range)
        if not low < high:
            raise ValueError(f"{self.name}: range ({low}, {high}) is empty; expected low < high")
        if not np.isfinite(images).all():
            bad = int((~np.isfinite(images)).reshape(n, -1).any(1).sum())
            raise ValueError(f"{self.name}: {bad} of {n} images hold NaN or infinity; remove or repair them first")
        if n and (images.min() < low or images.max() > high):
            raise ValueError(
                f"{self.name}: pixel values span [{images.min():g}, {images.max():g}] {self.unit} but the declared range is "
                f"[{low:g}, {high:g}]; clip the images or declare the range they have"
            )
        patient = _column(self.patient, n, self.name, "patient")
        if not np.issubdtype(patient.dtype, np.integer):
            raise ValueError(f"{self.name}: patient has dtype {patient.dtype}; expected integers")
        split = np.full(n, "") if self.split is None else _column(self.split, n, self.name, "split")
        unknown = sorted(set(map(str, split.tolist())) - set(SPLITS))
        if unknown:
            raise ValueError(f"{self.name}: split holds {unknown}; expected {SPLITS}")
        split = split.astype("<U5")
        pairs = pd.DataFrame({"p": patient, "s": split}).drop_duplicates()
        crossing = pairs["p"][pairs["p"].duplicated()].tolist()
        if crossing:
            raise ValueError(f"{self.name}: patients {crossing[:5]} lie in several splits; split by patient")
        for key, known in (("role", ROLES), ("modality", (*MODALITIES, "")), ("origin", ORIGINS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{self.name}: {key} {getattr(self, key)!r}; expected one of {known}")
        if self.orientation is not None and len(self.orientation) != len(spatial):
            raise ValueError(f"{self.name}: orientation {self.orientation!r}; expected {len(spatial)} letters, one per axis")
        people = self.origin != "phantom" if self.people is None else bool(self.people)
        if people != (self.origin == "scan") and self.origin in ("phantom", "scan"):
            said = "nobody was scanned" if self.origin == "phantom" else "somebody was"
            raise ValueError(f"{self.name}: people={people} of a {self.origin}, for which {said}; leave it out")
        if self.spacing is not None and (len(self.spacing) != len(spatial) or min(self.spacing) <= 0):
            raise ValueError(f"{self.name}: spacing {self.spacing}; expected {len(spatial)} positive lengths in mm")
        for key, value in {
            "images": _frozen(images),
            "patient": _frozen(patient.astype(np.int64)),
            "range": (low, high),
            "split": _frozen(split),
            "spacing": None if self.spacing is None else tuple(float(v) for v in self.spacing),
            "people": people,
            "attributes": typed(self.attributes, n, self.name),
        }.items():
            object.__setattr__(self, key, value)
        # a table that is cut out or copied still says whose attributes it holds
        self.attributes.attrs["role"] = self.role

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return (
            f"ImageSet({self.name!r}, {self.role} {self.origin}, {self.modality or 'modality unknown'}, n={len(self)}, "
            f"patients={self.patients}, shape={self.images.shape[1:]}, "
            f"{self.range[0]:g}..{self.range[1]:g} {self.unit})"
        )

    @property
    def spatial(self) -> tuple[int, ...]:
        """Spatial shape, (h, w) or (d, h, w)."""
        return self.images.shape[2:]

    @property
    def patients(self) -> int:
        """Number of distinct patients: the n that every interval is computed over."""
        return len(np.unique(self.patient))

    @property
    def dataset(self) -> str:
        """The name without the part that was taken of it: "x" of "x/test"."""
        return self.name.split("/")[0]

    @property
    def data_licence(self) -> str:
        """Licences of the rows, sorted and joined."""
        if "licence" not in self.attributes:
            return "unknown"
        return "; ".join(sorted(set(self.attributes["licence"].fillna("unknown"))))

    @cached_property
    def row_hashes(self) -> np.ndarray:
        """blake2b-128 of each image's bytes, (n,) of 32 hex digits: recognises a row whatever set it sits in."""
        # -0.0 and 0.0 are the same pixel and must hash alike
        clean = self.images + np.float32(0)
        return np.array([bytes_hash(row.tobytes()) for row in clean], dtype="<U32")

    @cached_property
    def content_hash(self) -> str:
        """blake2b-128 of all that has meaning (images, patients, splits, attributes, unit, range, spacing).

        Not of what is said about them: name, role, modality, origin and orientation.
        """
        meta = [self.unit, self.range, self.spacing, self.images.shape, [(c, str(t)) for c, t in self.attributes.dtypes.items()]]
        parts = [json.dumps(meta).encode(), *(row.encode() for row in self.row_hashes)]
        parts += [self.patient.astype("<i8").tobytes(), "\0".join(self.split.tolist()).encode()]
        for column in self.attributes:
            values, missing = to_arrays(self.attributes[column])
            parts += [missing.tobytes(), json.dumps(values.tolist()).encode()]
        return bytes_hash(*parts)

    def commitment(self, key: bytes) -> str:
        """HMAC-SHA256 of the pixels: without the key nobody can test a guess of who is in it, with it nobody can swap the set."""
        meta = {"unit": self.unit, "range": self.range, "shape": self.images.shape[1:]}
        told = json.dumps(meta, indent=1, sort_keys=True, allow_nan=False) + "\n"
        rows = "".join(sorted(self.row_hashes.tolist()))
        return hmac.new(key, b"medsynth.private-set/1\n" + (told + rows).encode("ascii"), "sha256").hexdigest()

    def select(self, index: np.ndarray | Sequence[int], name: str | None = None) -> ImageSet:
        """The rows of an integer index or boolean mask, in that order."""
        index = np.asarray(index)
        if index.dtype == bool and index.shape != (len(self),):
            raise ValueError(f"{self.name}: mask has shape {index.shape}; expected ({len(self)},)")
        rows = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return replace(
            self,
            images=_frozen(self.images[rows]),
            patient=self.patient[rows],
            split=self.split[rows],
            attributes=self.attributes.iloc[rows].reset_index(drop=True),
            name=name or self.name,
        )

    def in_split(self, split: str) -> ImageSet:
        """The rows of one split, named accordingly."""
        if split not in SPLITS:
            raise ValueError(f"{self.name}: no split {split!r}; expected one of {SPLITS}")
        return self.select(self.split == split, name=f"{self.name}/{split}")

    def of_patients(self, patients: Iterable[int]) -> ImageSet:
        """All rows of the given patients."""
        return self.select(np.isin(self.patient, list(patients)))

    def with_images(self, images: np.ndarray, **changes: object) -> ImageSet:
        """The same patients and attributes with other pixels, e.g. resized or degraded."""
        return replace(self, images=images, **changes)

    def with_role(self, role: str) -> ImageSet:
        """The same rows under another role; making a private set public is the ledger's business and refused here."""
        if self.role == "private" and role != "private":
            raise ValueError(f"{self.name}: a private set cannot be declared {role!r}")
        return replace(self, role=role)

    def scaled(self) -> np.ndarray:
        """Images mapped linearly from `range` to [-1, 1], float32 (n, c, *spatial): what networks see."""
        low, high = self.range
        scaled = (self.images - low) * (2.0 / (high - low)) - 1.0
        # rounding may step over the ends where |low| is large
        return np.clip(scaled, -1, 1, dtype=np.float32)

    def unscaled(self, scaled: np.ndarray) -> np.ndarray:
        """Inverse of `scaled`, clipped to [-1, 1] first: network output in this set's unit."""
        low, high = self.range
        images = (np.clip(scaled, -1, 1).astype(np.float64) + 1) * ((high - low) / 2) + low
        return np.clip(images, low, high).astype(np.float32)

    def split_by_patient(self, fractions: dict[str, float], seed: int) -> ImageSet:
        """A random split by patient; fractions over "train", "val", "test" sum to 1."""
        if abs(sum(fractions.values()) - 1) > 1e-9 or not set(fractions) <= set(SPLITS[:3]):
            raise ValueError(f"{self.name}: fractions {fractions}; expected train/val/test summing to 1")
        people = np.unique(self.patient)
        order = np.random.default_rng(seed).permutation(people)
        edges = np.round(np.cumsum(list(fractions.values())) * len(people)).astype(int)
        part = {int(p): key for key, chunk in zip(fractions, np.split(order, edges[:-1]), strict=True) for p in chunk}
        return replace(self, split=np.array([part[int(p)] for p in self.patient], dtype="<U5"))

    def save(self, path: str | Path) -> Path:
        """Write one compressed .npz, readable without pickle, atomically."""
        path = Path(path)
        columns = {}
        for i, column in enumerate(self.attributes):
            columns[f"attribute_{i}"], columns[f"missing_{i}"] = to_arrays(self.attributes[column])
        meta = {
            "format": _FORMAT, "name": self.name, "unit": self.unit, "range": self.range, "role": self.role,
            "spacing": self.spacing, "modality": self.modality, "origin": self.origin, "people": self.people,
            "orientation": self.orientation, "attributes": [[c, str(t)] for c, t in self.attributes.dtypes.items()],
        }  # fmt: skip
        arrays = {"meta": np.array(json.dumps(meta)), "images": self.images, "patient": self.patient, "split": self.split}
        with atomic_path(path) as temporary, open(temporary, "wb") as f:
            np.savez_compressed(f, **arrays, **columns)
        return path

    @classmethod
    def load(cls, path: str | Path) -> ImageSet:
        """Read a file written by `save`; raises ValueError for any other file."""
        with np.load(path, allow_pickle=False) as f:
            return cls.from_arrays({key: f[key] for key in f.files}, str(path))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], where: str) -> ImageSet:
        """The set whose arrays `save` wrote into the file `where`; raises ValueError where some are missing or too many.

        Files of format 1 do not say modality, origin and orientation: theirs are scans of an unknown modality.
        """
        if (meta := saved_meta(arrays)).get("format") not in _FORMATS:
            raise ValueError(f"{where}: not an ImageSet file; expected one written by ImageSet.save")
        columns = [f"{part}_{i}" for i in range(len(meta["attributes"])) for part in ("attribute", "missing")]
        expected = {"meta", "images", "patient", "split", *columns}
        if odd := sorted(expected.symmetric_difference(arrays)):
            found = "is missing" if odd[0] in expected else "is no part of a saved set, and would not be compared with"
            raise ValueError(f"{where}: the array {odd[0]!r} {found}; expected a file as ImageSet.save writes it")
        table = pd.DataFrame(index=range(len(arrays["patient"])))
        for i, (column, dtype) in enumerate(meta["attributes"]):
            table[column] = from_arrays(arrays[f"attribute_{i}"], arrays[f"missing_{i}"], dtype)
        spacing = None if meta["spacing"] is None else tuple(meta["spacing"])
        return cls(
            images=arrays["images"], patient=arrays["patient"], split=arrays["split"], unit=meta["unit"],
            range=tuple(meta["range"]), name=meta["name"], role=meta["role"], spacing=spacing, modality=meta.get("modality", ""),
            origin=meta.get("origin", "scan"), people=meta.get("people"), orientation=meta.get("orientation"), attributes=table,
        )  # fmt: skip


def saved_meta(arrays: Mapping[str, np.ndarray]) -> dict:
    """What ImageSet.save says of a set beside its arrays; empty where another program wrote them."""
    try:
        meta = json.loads(str(arrays["meta"]))
    except (KeyError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and str(meta.get("format")).startswith("medsynth.ImageSet/") else {}


def concatenate(sets: Sequence[ImageSet], name: str) -> ImageSet:
    """Rows of several sets as one; patients are renumbered so that no two sets share one.

    Shape, unit, range, and modality and orientation where they are known, must agree; attributes missing from a set are missing
    values; the strictest role wins, and sets of several origins are mixed.
    """
    first = sets[0]
    for other in sets[1:]:
        for key in ("unit", "range"):
            if getattr(other, key) != getattr(first, key):
                raise ValueError(f"{other.name}: {key} {getattr(other, key)} differs from {first.name}'s {getattr(first, key)}")
        if other.images.shape[1:] != first.images.shape[1:]:
            raise ValueError(f"{other.name}: shape {other.images.shape[1:]} differs from {first.name}'s {first.images.shape[1:]}")
    known = {key: sorted({v for s in sets if (v := getattr(s, key))}) for key in ("modality", "orientation")}
    if several := next((f"{key} {' and '.join(v)}" for key, v in known.items() if len(v) > 1), ""):
        raise ValueError(f"{name}: sets of {several}; expected one, so that images can be compared")
    patient, offset = [], 0
    for s in sets:
        _, numbers = np.unique(s.patient, return_inverse=True)
        patient.append(numbers + offset)
        offset += s.patients
    roles, origins = {s.role for s in sets}, {s.origin for s in sets}
    return ImageSet(
        images=np.concatenate([s.images for s in sets]),
        patient=np.concatenate(patient),
        split=np.concatenate([s.split for s in sets]),
        unit=first.unit,
        range=first.range,
        name=name,
        role=next(r for r in ("private", "eval", "public") if r in roles),
        spacing=first.spacing if len({s.spacing for s in sets}) == 1 else None,
        modality=next(iter(known["modality"]), ""),
        origin=first.origin if len(origins) == 1 else "mixed",
        people=any(s.people for s in sets),
        orientation=next(iter(known["orientation"]), None),
        attributes=pd.concat([s.attributes for s in sets], ignore_index=True),
    )


def _column(values: np.ndarray, n: int, name: str, key: str) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (n,):
        raise ValueError(f"{name}: {key} has shape {values.shape}; expected ({n},)")
    return values


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.view()
    array.flags.writeable = False
    return array
