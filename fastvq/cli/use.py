# SPDX-License-Identifier: Apache-2.0
"""The commands that use a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastvq import _files, training
from fastvq.cli.options import Copies, Data, Run, Split, encoded, report
from fastvq.training import Codes, TrainedPrior, pictures
from fastvq.training.runs import PRIOR_FOLDER

Prior = Annotated[
    Path | None, typer.Option(help="Folder of the prior's run; by default RUN/prior.")
]
Picture = Annotated[Path, typer.Option(help="The PNG to write.")]
_COLUMNS = 16


def reconstruct(
    run: Run,
    out: Picture = Path("reconstructions.png"),
    data: Data = None,
    split: Split = "test",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images.")] = 48,
) -> None:
    """Draw images above what the codes keep of them."""
    model = training.load_vqvae(run)
    images = training.load_data(run, model, data, report=report).part(split)
    originals, kept = training.reconstruct_images(model, images, count)
    columns = min(_COLUMNS, len(originals))
    pictures.save_picture(pictures.reconstructions(originals, kept, columns), out)
    print(out)


def encode(
    run: Run,
    out: Annotated[Path, typer.Option(help="The .npz to write.")] = Path("codes.npz"),
    data: Data = None,
    copies: Copies = 0,
) -> None:
    """Write the codes of a data set."""
    codes = encoded(run, data, copies)
    codes.save(out)
    height, width = codes.grid
    print(f"{out}: {len(codes.codes)} grids of {height}x{width} codes, K = {codes.codebook_size}")


def decode(
    run: Run,
    codes: Annotated[Path, typer.Argument(help="File of `fastvq encode`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for one PNG per image.")] = Path("decoded"),
) -> None:
    """Write the images that codes stand for."""
    images = training.decode_codes(training.load_vqvae(run), Codes.load(codes))
    digits = len(str(len(images)))
    for index, image in enumerate(pictures.to_images(images)):
        pictures.save_picture(image, out / f"{index:0{digits}d}.png")
    print(f"{out}: {len(images)} images")


def sample(
    run: Run,
    out: Picture = Path("samples.png"),
    prior: Prior = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images of each class.")] = 12,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="A class; may be repeated.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1 is safer, above 1 wilder.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest codes.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest codes of sum p.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same images.")] = 0,
) -> None:
    """Draw new images: codes from the prior, pixels from the decoder."""
    trained = training.load_prior(prior if prior is not None else run / PRIOR_FOLDER)
    images, labels = training.sample_images(
        training.load_vqvae(run),
        trained,
        count,
        classes=classes,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    names = (classes or trained.classes) if labels is not None else ()
    columns = count if labels is not None else min(count, _COLUMNS)
    pictures.save_picture(pictures.image_grid(images, columns, row_names=names), out)
    print(out)


def evaluate(
    run: Run,
    data: Data = None,
    split: Split = "test",
    prior: Prior = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well.")] = None,
) -> None:
    """Print what is measured on a split, of the VQ-VAE and of its prior, as JSON."""
    model = training.load_vqvae(run)
    splits = training.load_data(run, model, data, report=report)
    found = training.evaluate(model, splits, split, trained=_prior_if_any(run, prior))
    if out is not None:
        _files.write_json(out, found)
    print(json.dumps(found, indent=2))


def _prior_if_any(run: Path, prior: Path | None) -> TrainedPrior | None:
    if prior is not None:
        return training.load_prior(prior)
    folder = run / PRIOR_FOLDER
    return training.load_prior(folder) if folder.is_dir() else None
