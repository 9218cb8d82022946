"""Image files, and the command that denoises them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import error_of

from srm_triton import denoise_tv
from srm_triton.cli import main
from srm_triton.images import ImageFile, read_image, write_png


@pytest.mark.parametrize(
    ("mode", "shape", "opaque"),
    [("L", (1, 4, 5), False), ("LA", (1, 4, 5), True), ("RGB", (3, 4, 5), False), ("RGBA", (3, 4, 5), True)],
)
def test_what_is_read_is_written(tmp_path, mode, shape, opaque):
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 256, (4, 5, shape[0] + opaque), dtype=np.uint8)
    Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(tmp_path / "in.png")
    image = read_image(tmp_path / "in.png")
    assert image.pixels.shape == shape and image.pixels.dtype == torch.uint8
    assert (image.opacity is not None) == opaque
    write_png(tmp_path / "out.png", image.pixels / 255, image)
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == mode
        assert np.array_equal(np.array(written).reshape(levels.shape), levels)


def test_16_bits(tmp_path):
    levels = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    Image.fromarray(levels).save(tmp_path / "in.png")
    image = read_image(tmp_path / "in.png")
    assert image.pixels.dtype == torch.uint16 and np.array_equal(image.pixels[0].numpy(), levels)
    write_png(tmp_path / "out.png", image.pixels.double() / 65535, image)
    assert torch.equal(read_image(tmp_path / "out.png").pixels.int(), image.pixels.int())


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("P", 3), ("CMYK", 3)])
def test_other_modes_are_converted(tmp_path, mode, channels):
    Image.new("RGB", (5, 4), (255, 0, 0)).convert(mode).save(tmp_path / f"in.{'tiff' if mode == 'CMYK' else 'png'}")
    (path,) = tmp_path.iterdir()
    pixels = read_image(path).pixels
    assert pixels.shape == (channels, 4, 5) and pixels.dtype == torch.uint8
    assert channels == 1 or pixels[0].float().mean() > 250 > 5 > pixels[1:].float().mean()


@pytest.mark.parametrize("array", [np.full((2, 3), 70000, dtype=np.int32), np.full((2, 3), 0.5, dtype=np.float32)])
def test_values_of_more_than_16_bits(tmp_path, array):
    Image.fromarray(array).save(tmp_path / "in.tiff")
    with pytest.raises(ValueError, match=f"must hold integers from 0 to 65535, got {array.dtype}"):
        read_image(tmp_path / "in.tiff")


def test_32_bits_that_hold_16(tmp_path):
    Image.fromarray(np.array([[0, 40000]], dtype=np.int32)).save(tmp_path / "in.tiff")
    pixels = read_image(tmp_path / "in.tiff").pixels
    assert pixels.dtype == torch.uint16 and pixels.flatten().tolist() == [0, 40000]


def test_orientation_and_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    Image.new("L", (5, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").pixels.shape == (1, 5, 4)
    Image.fromarray(np.array([[0, 7]], dtype=np.uint8)).save(tmp_path / "in.png", transparency=7)
    image = read_image(tmp_path / "in.png")
    assert image.pixels.flatten().tolist() == [0, 7] and image.opacity.flatten().tolist() == [255, 0]


def test_damaged_and_huge_files(tmp_path, monkeypatch):
    Image.new("L", (50, 40)).save(tmp_path / "in.png")
    content = (tmp_path / "in.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[:37] + b"\0" * 4 + content[41:])
    with pytest.raises((ValueError, OSError), match=r"broken|truncated"):
        read_image(tmp_path / "broken.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"in\.png: Image size"):
        read_image(tmp_path / "in.png")


def test_values_beyond_white_and_black_are_cut_off(tmp_path):
    pixels = torch.tensor([[[-1.0, 0.5, 2.0]]])
    write_png(tmp_path / "out.png", pixels, ImageFile(torch.zeros(1, 1, 3, dtype=torch.uint8), None))
    assert read_image(tmp_path / "out.png").pixels.flatten().tolist() == [0, 128, 255]


# srm-triton denoise


@pytest.fixture
def noisy_png(tmp_path) -> Path:
    clean = torch.zeros(20, 30)
    clean[5:12, 8:20] = 0.8
    noisy = clean + 0.1 * torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    for name, image in (("clean.png", clean), ("noisy.png", noisy)):
        Image.fromarray((image.clamp(0, 1) * 255).round().byte().numpy()).save(tmp_path / name)
    return tmp_path / "noisy.png"


def test_denoise(capsys, noisy_png):
    out, clean, plot = (noisy_png.with_name(name) for name in ("out.png", "clean.png", "plot.png"))
    arguments = ["denoise", str(noisy_png), str(out), "--plot", str(plot), "--device", "cpu"]
    assert main(arguments) == 0
    without_psnr = plot.read_bytes()
    assert len(without_psnr) > 10_000
    capsys.readouterr()
    assert f"{out}: exists; choose another name, or add --overwrite" in error_of(capsys, arguments)
    assert plot.read_bytes() == without_psnr
    assert main([*arguments, "--overwrite", "--reference", str(clean)]) == 0
    assert plot.read_bytes() != without_psnr
    output = capsys.readouterr().out
    before, after = r"21.\d\d dB before, ", r"2[5-9].\d\d dB after\n"
    assert re.match(r"\d+ iterations, converged\npeak signal-to-noise ratio " + before + after, output)
    assert output.endswith(f"  {out}\n  {plot}\n")
    noisy, denoised = (read_image(path).pixels for path in (noisy_png, out))
    expected = (denoise_tv(noisy, 0.15) * 255).clamp(0, 255).round().byte()
    assert torch.equal(denoised, expected) and not torch.equal(denoised, noisy)


def test_denoise_passes_its_options_on(capsys, noisy_png):
    out = noisy_png.with_name("out.png")
    assert main(["denoise", str(noisy_png), str(out), "--tolerance", "1"]) == 0
    assert capsys.readouterr().out.startswith("5 iterations, converged\n")
    options = ["--fidelity", "l1", "--weight", "0.7", "--method", "seed", "--max-iterations", "3", "--overwrite"]
    assert main(["denoise", str(noisy_png), str(out), *options]) == 0
    assert capsys.readouterr().out.startswith("3 iterations, stopped before the tolerance was reached\n")
    expected = denoise_tv(read_image(noisy_png).pixels, 0.7, "l1", method="seed", max_iterations=3)
    assert torch.equal(read_image(out).pixels, (expected * 255).clamp(0, 255).round().byte())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("noisy.png out.jpg", "out.jpg: must end with .png"),
        ("none.png out.png", "No such file"),
        ("text.png out.png", "cannot identify image file"),
        ("noisy.png out.png --weight -1", "weight must be finite and ≥ 0, got -1.0"),
        ("noisy.png out.png --plot out.png", "--plot"),
        ("noisy.png out.png --plot p.png --weight 0", "nothing to draw"),
        ("noisy.png none/out.png", "there is no folder"),
    ],
)
def test_bad_input_of_denoise(arguments, message, capsys, noisy_png, monkeypatch):
    monkeypatch.chdir(noisy_png.parent)
    Path("text.png").write_text("no image")
    assert message in error_of(capsys, ["denoise", *arguments.split()])
    assert not Path("out.png").exists()
