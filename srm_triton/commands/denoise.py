"""`srm-triton denoise`: removes noise from an image."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from srm_triton.commands.shared import Commands, add_device, chosen_device, progress
from srm_triton.images.denoise import Coupling, Denoised, Method, denoise_tv
from srm_triton.ops.shrink import Edges, Fidelity

if TYPE_CHECKING:
    from srm_triton.images.files import ImageFile

DENOISING_WEIGHTS = {"l2": 0.15, "l1": 1.0}
_USUAL_ITERATIONS = {"l2": 15, "l1": 45}  # of photographs at the default tolerance, for the progress bar


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton denoise`."""
    parser = commands.add_parser(
        "denoise",
        help="remove noise from an image",
        description="Removes noise from an image, or every page of a TIFF file, by total variation. Edges, opacity, "
        "colour profile and number of bits stay; numbers of 32 bits are taken in units of their largest.",
    )
    parser.set_defaults(run=_denoise)
    parser.add_argument("input", type=Path, metavar="IN", help="an image file")
    parser.add_argument("output", type=Path, metavar="OUT", help="the file to write: .png, .jpg, .tif, .webp, ...")
    parser.add_argument(
        "--fidelity",
        choices=get_args(Fidelity),
        default="l2",
        help="l2 for Gaussian noise, l1 for salt and pepper (default: %(default)s)",
    )
    usual = ", ".join(f"{weight} for {fidelity}" for fidelity, weight in DENOISING_WEIGHTS.items())
    parser.add_argument("--weight", type=float, help=f"the larger, the smoother (default: {usual})")
    parser.add_argument("--edges", choices=get_args(Edges), help="default: mirrored, for the method seed periodic")
    parser.add_argument("--isotropic", action="store_true", help="favour no direction of edges")
    parser.add_argument(
        "--coupling", choices=get_args(Coupling), default="none", help="channels: edges of colours lie together"
    )
    parser.add_argument("--method", choices=get_args(Method), default="adaptive", help="default: %(default)s")
    parser.add_argument(
        "--tolerance", type=float, help="largest relative duality gap to stop at (default: 0.01 for l2, 0.02 for l1)"
    )
    parser.add_argument("--max-iterations", type=int, default=500, help="at the latest (default: %(default)s)")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="the image without noise, to compare with")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG file for images and trace")
    add_device(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _read(path: Path) -> list["ImageFile"]:
    from srm_triton.images.files import read_images

    try:
        return read_images(path)
    except (OSError, ValueError) as error:  # of which Pillow does not always name the file
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def _denoise(options: argparse.Namespace) -> int:
    """Writes the image without its noise and returns the exit code 0."""
    from srm_triton.images.files import check_format, write_images

    outputs = [path for path in (options.output, options.plot) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"--plot {options.plot}: is OUT; choose another name")
    if options.plot is not None and options.weight == 0:
        raise ValueError("--plot: with --weight 0 the image stays as it is, and there is nothing to draw")
    if options.plot is not None and options.plot.suffix.lower() != ".png":
        raise ValueError(f"{options.plot}: must end with .png")
    for path in outputs:
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if path.exists() and not options.overwrite:
            raise ValueError(f"{path}: exists; choose another name, or add --overwrite")
    device = chosen_device(options.device)
    images = _read(options.input)
    check_format(options.output, images)
    if options.plot is not None and len(images) > 1:
        raise ValueError(f"--plot: draws one page, and {options.input} has {len(images)}")
    references = None if options.reference is None else _references(options, images)
    usual = _USUAL_ITERATIONS[options.fidelity] if options.method == "adaptive" else options.max_iterations
    results = []
    with progress(len(images) * min(usual, options.max_iterations), "iteration") as (advance, _):
        for number, image in enumerate(images):
            clean = None if references is None else references[number]
            results.append(_denoise_page(options, image, clean, device, advance))
    write_images(options.output, [result.image for result in results], images)
    if options.plot is not None:
        from srm_triton.plots import plot_denoising

        plot_denoising(_in_units(images[0]), results[0], options.plot)
    for number, (image, result) in enumerate(zip(images, results, strict=True)):
        page = f"page {number + 1}: " if len(images) > 1 else ""
        end = "converged" if result.converged else "stopped before the tolerance was reached"
        print(f"{page}{int(result.iterations)} iterations, {end}")
        if references is not None:
            errors = (values.cpu() - references[number] for values in (_in_units(image), result.image))
            before, after = (-10 * error.double().square().mean().log10() for error in errors)
            print(f"peak signal-to-noise ratio {before:.2f} dB before, {after:.2f} dB after")
    for path in outputs:
        print(f"  {path}")
    return 0


def _in_units(image: "ImageFile") -> Tensor:
    """Pixels in units of white."""
    return (image.pixels.double() / image.white).float()


def _references(options: argparse.Namespace, images: list["ImageFile"]) -> list[Tensor]:
    """The images without noise, which must be like those with it."""
    references = _read(options.reference)
    if len(references) != len(images):
        raise ValueError(
            f"{options.reference}: must have the {len(images)} pages of {options.input}, got {len(references)}"
        )
    for reference, image in zip(references, images, strict=True):
        if reference.pixels.shape != image.pixels.shape:
            allowed, found = ("×".join(map(str, file.pixels.shape)) for file in (image, reference))
            raise ValueError(
                f"--reference {options.reference}: must have the channels, height and width of {options.input}, "
                f"{allowed}, got {found}"
            )
    return [_in_units(reference) for reference in references]


def _denoise_page(
    options: argparse.Namespace,
    image: "ImageFile",
    reference: Tensor | None,
    device: torch.device,
    advance: Callable[[], object],
) -> Denoised:
    visible = image.visible
    if visible is not None and not visible.any():
        raise ValueError(f"{options.input}: must have a pixel that is not transparent")
    try:
        return denoise_tv(
            _in_units(image).to(device),
            DENOISING_WEIGHTS[options.fidelity] if options.weight is None else options.weight,
            options.fidelity,
            edges=options.edges,
            isotropic=options.isotropic,
            coupling=options.coupling,
            mask=None if visible is None else visible.to(device),
            channel_axis=0,
            method=options.method,
            tolerance=options.tolerance,
            max_iterations=options.max_iterations,
            reference=None if reference is None else reference.to(device),
            after_iteration=advance,
            trace=True,
        )
    except ValueError as error:
        raise ValueError(f"{options.input}: {error}" if str(error).startswith("image") else str(error)) from error
