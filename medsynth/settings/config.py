"""Frozen, typed configurations: what a profile may say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# parameters of a denoiser; see medsynth.privacy.dp.trainable
TRAINABLE = ("bias", "attention", "lora", "full")
_POSITIVE, _COUNT = (lambda v: 0 < v < math.inf, "a number above 0"), (lambda v: v >= 1, "at least 1")
_SOUND = {  # of a PrivacyConfig
    "epsilon": (lambda v: v > 0, "a number above 0"), "clip": _POSITIVE, "learning_rate": _POSITIVE,
    "steps": _COUNT, "batch": _COUNT, "draws": _COUNT, "physical": _COUNT, "warmup": (lambda v: v >= 0, "at least 0"),
    "central": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "ema": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "trainable": (TRAINABLE.__contains__, f"one of {', '.join(TRAINABLE)}"),
    "schedule": (("constant", "cosine").__contains__, "'constant' or 'cosine'"),
    "randomness": (("seeded", "secure").__contains__, "'seeded' or 'secure'"),
    "accountant": (("prv", "rdp").__contains__, "'prv' or 'rdp'"),
    "delta_rule": (("below 1/n", "forced").__contains__, "'below 1/n' or 'forced'"),
}  # fmt: skip


@dataclass(frozen=True)
class ThoraxConfig:
    """How many phantom patients of the thorax a profile uses, and the side of its images."""

    size: int  # pixels; also the side to which real X-rays are resampled
    private_patients: int  # the set whose privacy is at stake
    test_patients: int  # private population, never trained on: fidelity is measured against them
    scans: int = 1  # scans per patient


@dataclass(frozen=True)
class CardiacConfig:
    """How many phantom hearts a profile shows, and the shape of their stacks."""

    patients: int
    slices: int = 16  # a multiple of 8: the 3D denoiser halves the depth three times
    size: int = 64


@dataclass(frozen=True)
class AutoencoderConfig:
    """KL autoencoder on the 2x pixel-unshuffled image (Rombach et al. 2022; MONAI AutoencoderKL)."""

    channels: tuple[int, ...] = (64, 128)  # one level more = one halving more
    residual_blocks: int = 1
    latent_channels: int = 8  # with 4, texture of ribs and vessels does not come back
    steps: int = 2000
    batch: int = 16
    learning_rate: float = 1e-3
    fourier_weight: float = 0.5  # L1 of the complex 2D FFT: keeps ribs that plain L1 blurs away
    latent_noise: float = 0.15  # of a standardised latent, at most: what the decoder learns to see through
    kl_weight: float = 3e-5  # of the mean KL per latent value; 1e-3 drowns ribs in the noise it asks for
    seed: int = 0


@dataclass(frozen=True)
class RefinerConfig:
    """U-Net that draws the detail a decoded image lacks, on the 2x pixel-unshuffled image (Ho et al. 2022: cascades)."""

    channels: tuple[int, ...] = (48, 96)
    residual_blocks: int = 1
    latent_noise: float = 0.15  # of a standardised latent, at most: what it learns to see through, as the decoder did


@dataclass(frozen=True)
class DenoiserConfig:
    """U-Net that predicts noise or velocity from noisy latents (MONAI DiffusionModelUNet)."""

    channels: tuple[int, ...] = (64, 96, 128)
    residual_blocks: int = 1
    attention: tuple[bool, ...] = (False, True, True)  # per level
    head_channels: int = 32
    spatial_dims: int = 2


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule, objective and optimisation of one latent diffusion model."""

    steps: int  # optimiser steps
    batch: int = 64
    learning_rate: float = 3e-4
    warmup: int = 100  # steps of linear warm-up, then cosine to zero
    prediction: str = "v_prediction"  # or "epsilon"
    schedule: str = "squaredcos_cap_v2"  # a diffusers beta schedule; cosine wastes fewer steps on small latents
    timesteps: int = 1000
    ema: float = 0.999
    label_dropout: float = 0.1  # share of examples trained without condition: what guidance subtracts
    checkpoint_every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class SamplingConfig:
    """How latents are drawn."""

    images: int
    steps: int = 20
    solver: str = "dpm"  # "dpm" (DPM-Solver++ 2M), "ddim" or "ddpm"
    guidance: float = 1.0  # 1 = conditional model as trained
    epsilon_scale: float = 1.02  # noise is taken for this much less; 1 = as predicted. Chosen on public radiographs
    batch: int = 128
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """How finely quality is measured."""

    splits: int = 10  # random patient-disjoint halves behind floor and score
    replicates: int = 200  # bootstrap replicates
    ruler_images: int = 400  # images per side of that study
    guidances: tuple[float, ...] = (1.0, 1.5, 2.0)


@dataclass(frozen=True)
class GateConfig:
    """What the gate is tried on: attacks on private patients, images of unseen ones, and samples of a generator."""

    private_patients: int  # phantoms in the attack tables, and the generator's private set
    unseen_patients: int
    images: int  # synthetic images that are judged
    maps: tuple[str, ...] = ("encoder", "pixels")  # where distance is measured


@dataclass(frozen=True)
class RestorationGridConfig:
    """The grid of restoration networks, each trained with one budget on several sets of one size."""

    experiments: tuple[str, ...]  # "task/network", e.g. "ct-low-dose/redcnn"
    arms: tuple[str, ...]  # training sets: "real", "reconstructed", "synthetic", "gated", or two as in "synthetic + real"
    images: int  # of every training set
    test_patients: int
    steps: int  # of every training; "real" is trained once more with twice as many
    seeds: tuple[int, ...] = (0,)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the experiments begin with, each once: one generator serves all experiments of a modality."""
        return tuple(dict.fromkeys(name.partition("-")[0] for name in self.experiments))


@dataclass(frozen=True)
class SitesConfig:
    """Hospitals that pool synthetic images: how many patients each has, and the network that is trained on the pool."""

    patients: int  # of each site
    test_patients: int  # of each site
    experiment: str  # "task/network", as in restoration
    steps: int
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class PrivacyConfig:
    """What is promised to every patient, and how a network is trained to it. All of it is public.

    Chosen on phantoms of the public population. Raises ValueError for what no run can have.
    """

    steps: int  # logical steps
    batch: int  # patients that a step expects; also the divisor
    epsilon: float = 1.0  # never exceeded; inf has to be said: no promise, the same loop without clip and noise
    clip: float = 0.05  # L2 norm of a patient's gradient, at most: most are above, so it sets the step as the learning rate does
    learning_rate: float = 1e-3
    delta: float | None = None  # None: min(1e-6, n^-1.5)
    delta_rule: str = "below 1/n"  # or "forced", which allows any
    draws: int = 1  # of (timestep, noise) for each record, averaged before the clip (Dockhorn et al., arXiv:2210.09929)
    central: float = 0.0  # share of the budget for noisy central images, which training begins with; 0: none
    trainable: str = "attention"  # one of TRAINABLE
    schedule: str = "constant"  # or "cosine", after the warm-up
    warmup: int = 0  # steps
    ema: float = 0.95
    physical: int = 8  # patients whose rows are in memory at a time
    randomness: str = "seeded"  # or "secure": from the operating system's entropy
    accountant: str = "prv"

    def __post_init__(self) -> None:
        for name, (is_sound, expected) in _SOUND.items():
            if not is_sound(value := getattr(self, name)):
                raise ValueError(f"{name} is {value!r}; expected {expected}")
        if self.central and math.isinf(self.epsilon):
            raise ValueError(f"central is {self.central}: a share of an infinite epsilon; expected 0, or an epsilon")


@dataclass(frozen=True)
class DPConfig:
    """Differentially private generators of hearts: whose they are, and which arms there are.

    Beside `epsilons` stand 0, the public weights, and infinity, the same training without clip and noise.
    """

    private_patients: int  # by a fair coin each is trained on, or kept as a canary for the audit
    test_patients: int
    asked_patients: int  # others of the same population, whose attributes generators are asked for, at ED and at ES
    epsilons: tuple[float, ...]
    training: PrivacyConfig
    scratch: PrivacyConfig  # of a network that has seen nothing
    scratch_epsilons: tuple[float, ...] = (10.0,)
    central: float = 0.1  # share of the budget that central images take in the arms that begin with them
    central_epsilons: tuple[float, ...] = ()
    chosen: tuple[str, ...] = ()  # for each of `epsilons`, the method with the lowest FID on the rehearsal population
    variants: tuple[str, ...] = ()  # of pre-training at the largest epsilon, as "draws 8", or of any: "scratch/inf/batch 9"
    sampling_steps: int = 10  # of a stack; 40 were no better on public phantoms
    candidates: int = 600  # of a Private Evolution, in each round
    guesses: int = 100  # of the audit, fixed beforehand
    audited_patients: int = 1000
    audit_draws: int = 16  # of timestep and noise, for each stack
    segmenter_steps: int = 1500  # of the network that measures volumes and walls, on phantoms of so many people
    segmenter_patients: int = 600
    overfitted_patients: int = 32  # of both sides; by their coins half are trained on, one stack each: what an audit must catch
    overfitted_guesses: int = 24
    overfitting: PrivacyConfig = PrivacyConfig(160, 4, math.inf, trainable="full", schedule="cosine", warmup=10)
    cost_batch: int = 16  # rows of the steps that are timed, so many times each
    cost_rounds: int = 7
    slices: int = 8
    size: int = 64

    def __post_init__(self) -> None:
        if self.chosen and len(self.chosen) != len(self.epsilons):
            raise ValueError(f"chosen has {len(self.chosen)} methods; expected one for each of {len(self.epsilons)} epsilons")

    def asked(self, people: int) -> int:
        """How many of so many held-out people are asked for; their images are measured against the others.

        Of fewer people than the profile has, half: neither may be too few.
        """
        enough = self.asked_patients + self.test_patients
        return round(people * (self.asked_patients / enough if people >= enough else 0.5))

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all that is trained, as START/EPSILON or START/EPSILON/VARIANT."""
        epsilons = {"pre-trained": (*self.epsilons, math.inf), "scratch": (*self.scratch_epsilons, math.inf)}
        epsilons |= {"central images first": self.central_epsilons}
        plain = (f"{start}/{epsilon:g}" for start, each in epsilons.items() for epsilon in each)
        return (*plain, *(v if "/" in v else f"pre-trained/{max(self.epsilons):g}/{v}" for v in self.variants))


@dataclass(frozen=True)
class DPImagesConfig:
    """Differentially private generators of single images, on the patients of `thorax`; 0 and infinity stand beside `epsilons`."""

    epsilons: tuple[float, ...]
    training: PrivacyConfig

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all that is trained, as in DPConfig."""
        return tuple(f"pre-trained/{epsilon:g}" for epsilon in (*self.epsilons, math.inf))


@dataclass(frozen=True)
class DPPatientsConfig:
    """One promise with ever more patients behind it: how many a private generator of hearts needs."""

    patients: tuple[int, ...]  # of the private set, the first so many; of a set of fewer, all
    epsilons: tuple[float, ...]
    training: PrivacyConfig  # its batch is for the fewest patients, and grows as they do

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all that is trained, as PATIENTS/EPSILON."""
        return tuple(f"{n}/{epsilon:g}" for n in self.patients for epsilon in (*self.epsilons, math.inf))

    def recipe(self, patients: int, epsilon: float) -> PrivacyConfig:
        """The training with so many patients, at least those of a step: each is as often in a step as of the fewest."""
        share = self.training.batch / self.patients[0]
        return replace(self.training, batch=max(1, round(share * patients)), epsilon=epsilon)


@dataclass(frozen=True)
class WeightsConfig:
    """On how many phantoms the shipped weights are measured, and how finely their ruler is studied."""

    patients: int  # of each modality; half as many others are scanned twice
    gate_patients: int  # of each modality, behind a gate; two thirds as many others are strangers to it
    public_patients: int  # of each modality: what the ruler's rivals are calibrated on
    rivals: int  # networks with random weights
    populations: int  # that are compared with themselves, to see what the ruler notices
    splits: int  # patient-disjoint halves of a set of 500, of smaller ones more, to see whether the ruler rises with damage
    power_splits: int  # and what it notices
