"""Configurations that work as they stand, as a template shows them."""

from __future__ import annotations

from collections.abc import Mapping

from cmsolvers.runs.config.configuration import Config
from cmsolvers.training.named_options import known_name

_ADAMW = {"betas": [0.9, 0.99], "weight_decay": 0.01}

_PRESETS: dict[str, tuple[str, Mapping[str, Mapping[str, object]]]] = {
    "digits-score": (
        "A score model of handwritten digits (8 x 8): the teacher of digits-cd, the start of "
        "digits-ect. A minute or two on two CPU cores.",
        {
            "run": {"out": "digits-score"},
            "data": {"source": "digits"},
            "model": {"kind": "score"},
            "loss": {"name": "dsm", "times": {"name": "log_normal", "mean": -1.0, "std": 1.4}},
            "optimizer": {"lr": 2e-3, "options": _ADAMW},
            "train": {"steps": 2000},
        },
    ),
    "digits-cd": (
        "Consistency distillation of digits-score: one Heun step of the teacher, an average of the "
        "student as target.",
        {
            "run": {"out": "digits-cd"},
            "data": {"source": "digits"},
            "model": {"kind": "cd"},
            "init": {"path": "teacher"},
            "teacher": {"path": "digits-score"},
            "loss": {
                "name": "cd",
                "times": {"name": "uniform_pairs", "count": 40},
                "target": {"name": "ema", "decay": 0.95},
                "options": {"distance": "pseudo_huber"},
            },
            "optimizer": {"lr": 5e-4, "options": _ADAMW},
            "train": {"steps": 700},
        },
    ),
    "digits-ct": (
        "Consistency training of handwritten digits from scratch: few levels at first, doubled on "
        "the way (docs/training.md says why).",
        {
            "run": {"out": "digits-ct"},
            "data": {"source": "digits"},
            "model": {"kind": "ct"},
            "loss": {"name": "ict", "times": {"name": "doubling_pairs", "s0": 2, "s1": 64}},
            "optimizer": {"lr": 1e-3, "options": _ADAMW},
            "train": {"steps": 1500},
        },
    ),
    "digits-ect": (
        "Easy consistency tuning: begins with the weights of digits-score, and brings the levels "
        "of a pair closer in four stages.",
        {
            "run": {"out": "digits-ect"},
            "data": {"source": "digits"},
            "model": {"kind": "ect"},
            "init": {"path": "digits-score"},
            "loss": {"name": "ect", "times": {"name": "ect_pairs", "q": 4.0, "stages": 4}},
            "optimizer": {"lr": 1e-3, "options": _ADAMW},
            "train": {"steps": 700},
        },
    ),
    "images": (
        "A denoiser of colour images of 32 x 32 from a folder of pictures, with a U-Net (EDM's "
        "weights and levels). For one GPU; more steps make better samples.",
        {
            "run": {"out": "images-score"},
            "data": {"source": "images", "size": 32, "flip": True, "workers": 4},
            "model": {"sigma_max": 80.0},
            "network": {"name": "unet", "options": {"channels": [128, 256, 256], "layers": 2}},
            "loss": {"name": "dsm", "times": {"name": "log_normal", "mean": -1.2, "std": 1.2}},
            "optimizer": {"lr": 2e-4, "clip": 1.0},
            "averages": {"ema": {"decay": 0.9999, "warmup": True}},
            "train": {"steps": 200_000, "batch_size": 256, "precision": "bf16"},
            "checkpoints": {"every": 5000},
            "sampling": {"every": 5000},
        },
    ),
    "toy": (
        "A flow in two dimensions, two half moons, in half a minute on a CPU.",
        {
            "run": {"out": "toy-flow"},
            "data": {"source": "toy:two_moons", "n": 20_000},
            "network": {"name": "mlp", "options": {"width": 128, "blocks": 3}},
            "loss": {"name": "flow_matching"},
            "optimizer": {"lr": 2e-3, "options": _ADAMW},
            "train": {"steps": 3000, "batch_size": 512},
        },
    ),
}


def presets() -> dict[str, str]:
    """The presets by name, with what each is."""
    return {name: about for name, (about, _) in _PRESETS.items()}


def preset(name: str) -> Config:
    """A preset.

    Raises:
        ValueError: no such one; the text has the nearest names.
    """
    return Config.of(_PRESETS[known_name("preset", name, _PRESETS)][1])
