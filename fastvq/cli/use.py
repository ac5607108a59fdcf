# SPDX-License-Identifier: Apache-2.0
"""The commands that use a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastvq import _files, training
from fastvq.cli.options import (
    Copies,
    Data,
    Device,
    Priors,
    Run,
    Split,
    encoded,
    load_model,
    load_priors,
    report,
)
from fastvq.training import Codes, media, runs

_IN_A_ROW = 16
Media = Annotated[
    Path | None,
    typer.Option(
        help="The PNG of images, the GIF of video or the folder of sounds to write.",
        show_default=False,
    ),
]


def reconstruct(
    run: Run,
    out: Media = None,
    data: Data = None,
    split: Split = "test",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Examples.")] = 48,
    device: Device = "auto",
) -> None:
    """Show data beside what the codes keep of it."""
    model = load_model(run, device)
    examples = training.load_data(run, model, data, report=report).part(split)
    originals, kept = training.reconstruct_examples(model, examples, count)
    path = out or Path(f"reconstructions{media.SUFFIXES[examples.kind]}")
    media.save_reconstructions(originals, kept, examples.kind, path, rate=examples.rate)
    print(path)


def encode(
    run: Run,
    out: Annotated[Path, typer.Option(help="The .npz to write.")] = Path("codes.npz"),
    data: Data = None,
    copies: Copies = 0,
    device: Device = "auto",
) -> None:
    """Write the codes of a data set."""
    codes = encoded(run, data, copies, device)
    codes.save(out)
    shapes = " and ".join("x".join(map(str, grid.shape[1:])) for grid in codes.grids)
    sizes = " and ".join(map(str, codes.codebook_sizes))
    print(f"{out}: {len(codes)} grids of {shapes} codes, K = {sizes}")


def decode(
    run: Run,
    codes: Annotated[Path, typer.Argument(help="File of `fastvq encode`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for one file per example.")] = Path("decoded"),
    device: Device = "auto",
) -> None:
    """Write the data that codes stand for."""
    model = load_model(run, device)
    read = Codes.load(codes)
    examples = training.decode_codes(model, read)
    digits = len(str(len(examples)))
    names = [f"{index:0{digits}d}" for index in range(len(examples))]
    media.save_each(examples, names, read.kind, out, rate=read.rate)
    print(f"{out}: {len(examples)} {media.PLURALS[read.kind]}")


def sample(
    run: Run,
    out: Media = None,
    prior: Priors = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Examples of each class.")
    ] = 12,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="A class; may be repeated.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1 is safer, above 1 wilder.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest codes.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest codes of sum p.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same examples.")] = 0,
    graph: Annotated[
        bool, typer.Option("--graph", help="By a CUDA graph: the same codes, on a GPU alone.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Draw new data: codes from the priors, values from the decoder."""
    model = load_model(run, device)
    priors = load_priors(run, prior, device)
    examples, labels = training.sample_examples(
        model,
        priors,
        count,
        classes=classes,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        graph=graph,
    )
    kind = priors[0].kind
    path = out or Path(f"samples{media.SUFFIXES[kind]}")
    names = (classes or priors[0].classes) if labels is not None else ()
    columns = count if labels is not None else _IN_A_ROW
    media.save_examples(examples, kind, path, rate=priors[0].rate, columns=columns, row_names=names)
    print(path)


def evaluate(
    run: Run,
    data: Data = None,
    split: Split = "test",
    prior: Priors = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well.")] = None,
    device: Device = "auto",
) -> None:
    """Print what is measured on a split, of the VQ-VAE and of its priors, as JSON."""
    model = load_model(run, device)
    splits = training.load_data(run, model, data, report=report)
    priors = (
        load_priors(run, prior, device) if prior or runs.prior_folders(run, absent_ok=True) else []
    )
    found = training.evaluate(model, splits, split, priors=priors)
    if out is not None:
        _files.write_json(out, found)
    print(json.dumps(found, indent=2))
