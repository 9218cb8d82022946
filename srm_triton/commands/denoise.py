"""`srm-triton denoise`: removes noise from an image."""

import argparse
from pathlib import Path
from typing import get_args

from srm_triton.commands.shared import Commands, add_device, chosen_device, progress
from srm_triton.denoise import Method, denoise_tv, to_float
from srm_triton.ops.shrink import Fidelity

DENOISING_WEIGHTS = {"l2": 0.15, "l1": 1.0}


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton denoise`."""
    parser = commands.add_parser(
        "denoise",
        help="remove noise from an image",
        description="Removes noise from an image by total variation; edges and opacity stay.",
    )
    parser.set_defaults(run=_denoise)
    parser.add_argument("input", type=Path, metavar="IN", help="an image file")
    parser.add_argument("output", type=Path, metavar="OUT", help="the PNG file to write")
    parser.add_argument(
        "--fidelity",
        choices=get_args(Fidelity),
        default="l2",
        help="l2 for Gaussian noise, l1 for salt and pepper (default: %(default)s)",
    )
    usual = ", ".join(f"{weight} for {fidelity}" for fidelity, weight in DENOISING_WEIGHTS.items())
    parser.add_argument("--weight", type=float, help=f"the larger, the smoother (default: {usual})")
    parser.add_argument("--method", choices=get_args(Method), default="adaptive", help="default: %(default)s")
    parser.add_argument("--tolerance", type=float, help="where to stop (default: 0.01 for l2, 0.015 for l1)")
    parser.add_argument("--max-iterations", type=int, default=500, help="at the latest (default: %(default)s)")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="the image without noise, to compare with")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG file for images and trace")
    add_device(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _denoise(options: argparse.Namespace) -> int:
    """Writes the image without its noise and returns the exit code 0."""
    from srm_triton.images import read_image, write_png

    outputs = [path for path in (options.output, options.plot) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"--plot {options.plot}: is OUT; choose another name")
    if options.plot is not None and options.weight == 0:
        raise ValueError("--plot: with --weight 0 the image stays as it is, and there is nothing to draw")
    for path in outputs:
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path}: must end with .png")
        if path.exists() and not options.overwrite:
            raise ValueError(f"{path}: exists; choose another name, or add --overwrite")
    device = chosen_device(options.device)
    image = read_image(options.input)
    noisy = image.pixels.to(device)
    reference = None if options.reference is None else read_image(options.reference).pixels.to(device)
    with progress(None, "iteration") as (advance, _):
        result = denoise_tv(
            noisy,
            DENOISING_WEIGHTS[options.fidelity] if options.weight is None else options.weight,
            options.fidelity,
            method=options.method,
            tolerance=options.tolerance,
            max_iterations=options.max_iterations,
            reference=reference,
            trace=True,
            after_iteration=advance,
        )
    write_png(options.output, result.image, image)
    if options.plot is not None:
        from srm_triton.plots import plot_denoising

        plot_denoising(noisy, result, options.plot)
    end = "converged" if result.converged else "stopped before the tolerance was reached"
    print(f"{int(result.iterations)} iterations, {end}")
    if reference is not None:
        errors = (image - to_float(reference) for image in (to_float(noisy), result.image))
        before, after = (-10 * error.double().square().mean().log10() for error in errors)
        print(f"peak signal-to-noise ratio {before:.2f} dB before, {after:.2f} dB after")
    for path in outputs:
        print(f"  {path}")
    return 0
