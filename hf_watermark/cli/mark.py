"""`hf-watermark mark`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..serialization import InvalidInput
from .attack import refuse_existing
from .errors import FOUND, NOT_FOUND
from .loading import PREPROCESSOR, load_model, refuse_no_model, silence_loading
from .passphrase import PassphraseFd, PassphraseFile, read_passphrase, unwarned
from .progress import begin
from .secrets import OwnerFd, OwnerFile, OwnerOption, load_key, load_owner


if TYPE_CHECKING:
    import torch

    from ..marking.nets import LoadedNet, StoredNet

EXAMPLE = "Example:\n\nhf-watermark mark my-model --owner me/owner.json --output my-marked-model --images photos"
# More only takes longer.
MOST_IMAGES = 256


def mark(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder of your own finished model, or user/repo[@revision] on the Hub. It is not changed; keep it.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="New folder for the marked model.")],
    owner: OwnerOption = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="DIR", help="New folder for the key; by default OUTPUT-key, beside the model."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="greedy_residuals or watermas.")] = "greedy_residuals",
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="PATH",
            help="Some images without labels (a folder, a parquet file, or 'digits'): 128 halve the cost.",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Height and width of images from --images.")
    ] = None,
    subkeys: Annotated[
        int | None, typer.Option("--subkeys", min=1, max=16, help="Number of sub-keys; as many as the budget allows.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", min=0, help="Most that the answers may move by: KL divergence in nats; 0.01."),
    ] = None,
    keep: Annotated[
        list[Path] | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            help="Key folder of a mark that the model carries already: refused if the new mark would spoil it. May be repeated.",
        ),
    ] = None,
    owner_passphrase_fd: OwnerFd = None,
    owner_passphrase_file: OwnerFile = None,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """
    Put a mark into a finished model, in seconds, without training, labels or data.

    Writes the marked model with its public files, the key beside it (encrypted when you give a passphrase), and fidelity.json.

    Exit status: 0 marked and read back, 1 not read back, 2 bad usage or unreadable input.
    """
    begin(f"Reading {source}")
    folder = output.with_name(f"{output.name}-key") if key is None else key
    refuse_existing(output)
    refuse_existing(folder, "--key")

    from ..keys import refuse_model_folder

    refuse_model_folder(folder, coming=output)
    identity = load_owner(owner, read_passphrase(owner_passphrase_fd, owner_passphrase_file))
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    kept = [load_key(place, passphrase)[0] for place in keep or ()]

    from transformers import AutoImageProcessor

    from ..marking.nets import model_folder
    from ..marking.writing import mark_net
    from ..publishing.cost import write_cost
    from ..publishing.precommit import public_files, write_public_files
    from ..verifying import verify

    model = model_folder(source)
    processor: Any = None
    if (model / PREPROCESSOR).is_file():
        processor = AutoImageProcessor.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    config = {"method": method} if subkeys is None else {"method": method, "subkeys": subkeys}
    limit: dict[str, Any] = {} if budget is None else {"budget": budget}
    with open_net(model, output, config) as net:
        pictures = None if images is None else load_pictures(images, net.source, model, image_size)
        marked = mark_net(net, config, identity, pictures, processor=processor, keep=kept, **limit)
        secret = marked[1]
        # First of all: a failure later must not leave a marked model whose key is lost.
        with unwarned():
            secret.save(folder, passphrase)
        net.save(output)
    if (model / PREPROCESSOR).exists() and not (output / PREPROCESSOR).exists():
        shutil.copyfile(model / PREPROCESSOR, output / PREPROCESSOR)
    evidence = verify(output, secret)
    write_public_files(output, public_files(secret, evidence.found))
    write_cost(output, marked.fidelity.to_dict())
    typer.echo(f"wrote {output}; its key is {folder}: keep both and {source}, and publish only the first")
    if passphrase is None:
        typer.echo(
            f"warning: {folder} is not encrypted, only its file mode protects it; --passphrase-file FILE encrypts it",
            err=True,
        )
    typer.echo(f"cost: {marked.fidelity}")
    typer.echo(str(evidence))
    raise typer.Exit(FOUND if evidence.found else NOT_FOUND)


def open_net(model: Path, output: Path, config: dict[str, Any]) -> "LoadedNet | StoredNet":
    """The folder, read part by part; loaded in full where it is stored otherwise than it is used, or the method needs that."""
    from ..mapping import AutoEmbedding
    from ..marking.nets import LoadedNet, NotStreamed, StoredNet
    from ..marking.writing import one_config

    silence_loading()
    refuse_no_model(model)
    try:
        if AutoEmbedding.for_method(one_config(config).method).streams:
            return StoredNet(model, output)
    except NotStreamed:
        pass
    return LoadedNet(load_model(model))


def load_pictures(source: str, model: Any, folder: Path, image_size: int | None) -> "torch.Tensor":
    """Up to 256 of the images, `[n, channels, height, width]`, from places spread evenly."""
    import torch

    from .data import load_images

    found = load_images(source, model, folder / PREPROCESSOR, image_size, None, labelled=False)
    rows = range(0, len(found), max(1, len(found) // MOST_IMAGES))[:MOST_IMAGES]
    pictures = [found[row]["pixel_values"] for row in rows]
    if len({picture.shape for picture in pictures}) > 1:
        raise InvalidInput(f"{source}: its images have different sizes; give --image-size")
    return torch.stack(pictures)
