"""`cmsolvers train`: a score or consistency model on images."""

from __future__ import annotations

import shutil
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        choices=("score", "cd", "ct", "ect"),
        default="score",
        help="what to train: a score model, a consistency model by distillation, from scratch "
        "or by tuning a score model",
    )
    parser.add_argument(
        "--data",
        default="digits",
        help="'digits' or an .npy/.npz file [n, H, W(, C)] or [n, C, H, W]",
    )
    parser.add_argument("--teacher", type=Path, help="checkpoint of a score model; for cd alone")
    parser.add_argument(
        "--init", type=Path, help="checkpoint of a score model to begin with; for ect alone"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: what digits need)")
    parser.add_argument("--batch", type=int, default=128, help="samples per step")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: what digits need)")
    parser.add_argument("--network", choices=("mlp", "unet"), help="default: mlp below 16 x 16")
    parser.add_argument("--sigma-max", type=float, help="largest noise level (default: 20)")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="start anew over the checkpoint in --out"
    )


def _run(options: Namespace) -> int:
    from cmsolvers.demo.digits import load_data
    from cmsolvers.training.checkpoints import RunFolder
    from cmsolvers.training.image_trainer import image_trainer
    from cmsolvers.training.models import load_model

    data, scale = load_data(options.data)
    trainer = image_trainer(
        options.model,
        data,
        scale,
        steps=options.steps,
        batch_size=options.batch,
        lr=options.lr,
        seed=options.seed,
        network=options.network,
        sigma_max=options.sigma_max,
        teacher=None if options.teacher is None else load_model(options.teacher),
        init=None if options.init is None else load_model(options.init),
        about={"data": Path(options.data).name},
    )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / options.model
    folder = RunFolder(options.out / f"{options.model}-run")
    if options.resume:
        trainer.resume(folder)
    elif options.overwrite:
        shutil.rmtree(folder.path, ignore_errors=True)
    elif path.exists() or folder.checkpoints():
        raise FileExistsError(
            f"--out must hold no checkpoint of this model; {path} is one: "
            "give --resume to go on from it or --overwrite to start anew"
        )
    try:
        trainer.run(
            folder=folder,
            every=options.every,
            progress=not options.quiet,
            description=f"training {options.model}",
        )
    except KeyboardInterrupt:
        print(f"at step {trainer.step}; --resume goes on from {folder.path}", file=sys.stderr)
        raise
    trainer.save(path)
    print(f"{trainer.step} steps; checkpoint: {path}")
    return 0


COMMAND = Command("train", "train a model on images", _options, _run, out="train-output")
