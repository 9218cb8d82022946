"""Image files, and the command that denoises them."""

import re
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from test_cli import error_of

from srm_triton.cli import main
from srm_triton.images import denoise_tv
from srm_triton.images.files import ImageFile, check_format, read_image, read_images, write_images


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
    write_images(tmp_path / "out.png", [image.pixels / 255], [image])
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == mode
        assert np.array_equal(np.array(written).reshape(levels.shape), levels)


def test_16_bits(tmp_path):
    levels = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    Image.fromarray(levels).save(tmp_path / "in.png")
    image = read_image(tmp_path / "in.png")
    assert image.pixels.dtype == torch.uint16 and np.array_equal(image.pixels[0].numpy(), levels)
    write_images(tmp_path / "out.png", [image.pixels.double() / 65535], [image])
    assert torch.equal(read_image(tmp_path / "out.png").pixels.int(), image.pixels.int())


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("P", 3), ("CMYK", 3)])
def test_other_modes_are_converted(tmp_path, mode, channels):
    Image.new("RGB", (5, 4), (255, 0, 0)).convert(mode).save(tmp_path / f"in.{'tiff' if mode == 'CMYK' else 'png'}")
    (path,) = tmp_path.iterdir()
    pixels = read_image(path).pixels
    assert pixels.shape == (channels, 4, 5) and pixels.dtype == torch.uint8
    assert channels == 1 or pixels[0].float().mean() > 250 > 5 > pixels[1:].float().mean()


@pytest.mark.parametrize(
    ("array", "white"),
    [
        (np.array([[0, 70000], [-140000, 3]], dtype=np.int32), 140000),
        (np.array([[0.25, 0.5], [-0.5, 0.125]], dtype=np.float32), 1),
        (np.array([[0.25, 500.0], [-1.0, 2.0**20]], dtype=np.float32), 2**20),
    ],
)
def test_values_of_more_than_16_bits(tmp_path, array, white):
    Image.fromarray(array).save(tmp_path / "in.tiff")
    (image,) = read_images(tmp_path / "in.tiff")
    assert image.white == white and np.array_equal(image.pixels[0].numpy(), array)
    write_images(tmp_path / "out.tif", [image.pixels.double() / white], [image])
    with Image.open(tmp_path / "out.tif") as written:
        assert np.array_equal(np.array(written), array) and np.array(written).dtype == array.dtype
    with pytest.raises(ValueError, match=r"in\.tiff: must hold integers from 0 to 65535, got torch\."):
        read_image(tmp_path / "in.tiff")
    for name in ("out.png", "out.webp", "out.jpg"):
        with pytest.raises(ValueError, match=rf"{name}: cannot hold an image of mode [IF] .* \.tif can"):
            check_format(tmp_path / name, [image])


def test_every_page_of_a_tiff(tmp_path):
    pages = [Image.new("L", (5, 4), 10), Image.new("RGB", (3, 2), (1, 2, 3)), Image.new("L", (6, 6), 30)]
    pages[0].save(tmp_path / "in.tif", save_all=True, append_images=pages[1:])
    images = read_images(tmp_path / "in.tif")
    assert [image.pixels.shape for image in images] == [(1, 4, 5), (3, 2, 3), (1, 6, 6)]
    assert [int(image.pixels.flatten()[0]) for image in images] == [10, 1, 30]
    write_images(tmp_path / "out.tif", [1 - image.pixels / 255 for image in images], images)
    assert [int(image.pixels.flatten()[0]) for image in read_images(tmp_path / "out.tif")] == [245, 254, 225]
    with pytest.raises(ValueError, match=r"out\.png: must end with \.tif, the format for the 3 pages"):
        check_format(tmp_path / "out.png", images)
    with pytest.raises(ValueError, match=r"in\.tif: must hold one page, got 3"):
        read_image(tmp_path / "in.tif")


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.tif", "out.webp"])
def test_formats_and_profile(tmp_path, name):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "in.png", icc_profile=profile)
    (image,) = read_images(tmp_path / "in.png")
    assert image.profile == profile
    write_images(tmp_path / name, [image.pixels / 255], [image])
    with Image.open(tmp_path / name) as written:
        assert written.format == {"jpg": "JPEG", "tif": "TIFF"}.get(name[4:], name[4:].upper())
        assert written.info["icc_profile"] == profile
        assert np.abs(np.array(written).astype(int) - [200, 100, 50]).max() <= (3 if name[4:] in ("jpg", "webp") else 0)


def test_a_profile_of_other_colours_is_applied(tmp_path):
    rgb = Image.new("RGB", (4, 4), (200, 100, 50))
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(rgb, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    image.save(tmp_path / "in.tif", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    (read,) = read_images(tmp_path / "in.tif")
    assert read.profile is None
    assert (read.pixels[:, 0, 0].int() - torch.tensor([200, 100, 50])).abs().max() <= 3


@pytest.mark.parametrize(
    ("image", "name", "message"),
    [
        (ImageFile(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.uint8)), "o.jpg", "mode RGBA"),
        (ImageFile(torch.zeros(1, 2, 2, dtype=torch.uint16)), "o.jpeg", "cannot hold an image of mode I;16"),
        (ImageFile(torch.zeros(1, 2, 2, dtype=torch.uint8)), "o.txt", r"must end with \.png, \.jpg, \.tif, \.webp"),
        (ImageFile(torch.zeros(1, 2, 2, dtype=torch.uint8)), "o", r"must end with \.png"),
    ],
)
def test_formats_that_cannot_hold_an_image(image, name, message):
    with pytest.raises(ValueError, match=message):
        check_format(Path(name), [image])


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


def test_a_profile_that_cannot_be_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (4, 4)).save(tmp_path / "in.tif", icc_profile=profile)
    with pytest.raises(ValueError, match=r"in\.tif: cannot build transform"):
        read_images(tmp_path / "in.tif")


def test_a_page_that_is_cut_off(tmp_path):
    pages = [Image.new("L", (14, 12), level) for level in range(3)]
    pages[0].save(tmp_path / "in.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "in.tif").write_bytes((tmp_path / "in.tif").read_bytes()[:300])
    with pytest.warns(UserWarning, match="Corrupt EXIF data"), pytest.raises(ValueError, match=r"in\.tif: Missing dim"):
        read_images(tmp_path / "in.tif")


def png_of_16_bits(kind, channels, transparency=b""):
    """A file that Pillow itself does not write."""
    header = struct.pack(">IIBBBBB", 2, 1, 16, kind, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": transparency, b"IDAT": zlib.compress(bytes(1 + 4 * channels)), b"IEND": b""}
    chunks = [(name, data) for name, data in parts.items() if data or name == b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_of_16_bits(2, 3), "must have 8 bits a channel"),
        (png_of_16_bits(4, 2), "must have 8 bits a channel"),
        (png_of_16_bits(6, 4), "must have 8 bits a channel"),
        (png_of_16_bits(0, 1, b"\0\0"), "must not have a grey level that stands for transparency"),
        (b"P6 2 1 1023\n" + bytes(12), "must have 8 bits a channel"),
        (png_of_16_bits(0, 1), None),
        (b"P5 2 1 1023\n" + bytes(4), None),
        (b"P6 2 1 255\n" + bytes(6), None),
    ],
)
def test_no_bits_are_lost(content, message, tmp_path):
    (tmp_path / "in").write_bytes(content)
    with nullcontext() if message is None else pytest.raises(ValueError, match=rf"in: {message}"):
        read_image(tmp_path / "in")


def test_every_page_keeps_its_own_profile(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pages = [ImageFile(torch.zeros(3, 2, 2, dtype=torch.uint8), profile=each) for each in (profile, None, b"other")]
    write_images(tmp_path / "out.tif", [torch.zeros(3, 2, 2)] * 3, pages)
    assert [page.profile for page in read_images(tmp_path / "out.tif")] == [profile, None, b"other"]


def test_values_beyond_white_and_black_are_cut_off(tmp_path):
    pixels = torch.tensor([[[-1.0, 0.5, 2.0]]])
    write_images(tmp_path / "out.png", [pixels], [ImageFile(torch.zeros(1, 1, 3, dtype=torch.uint8))])
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
        ("noisy.png out.txt", "out.txt: must end with .png, .jpg, .tif, .webp"),
        ("noisy.png out.png --plot p.jpg", "p.jpg: must end with .png"),
        (
            "noisy.png out.png --reference colour.png",
            "must have the channels, height and width of noisy.png, 1×20×30, got 3×20×30",
        ),
        ("noisy.png out.png --reference pages.tif", "pages.tif: must have the 1 pages of noisy.png, got 2"),
        ("pages.tif out.png", "must end with .tif, the format for the 2 pages"),
        ("pages.tif out.tif --plot p.png", "--plot: draws one page, and pages.tif has 2"),
        ("nothing.png out.png", "nothing.png: must have a pixel that is not transparent"),
        ("nan.tif out.tif", "nan.tif: image must be finite"),
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
    Image.new("RGB", (30, 20)).save("colour.png")
    Image.new("L", (30, 20)).save("pages.tif", save_all=True, append_images=[Image.new("L", (30, 20))])
    Image.new("LA", (30, 20)).save("nothing.png")
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save("nan.tif")
    assert message in error_of(capsys, ["denoise", *arguments.split()])
    assert not Path("out.png").exists()


def test_colour_under_full_transparency_stays_there(noisy_png):
    """And does not bleed into what is visible."""
    levels = np.full((20, 20, 4), (10, 20, 30, 255), dtype=np.uint8)
    levels[:, 10:] = (255, 255, 255, 0)
    image, out = (noisy_png.with_name(name) for name in ("sprite.png", "out.png"))
    Image.fromarray(levels).save(image)
    assert main(["denoise", str(image), str(out), "--weight", "0.5"]) == 0
    with Image.open(out) as written:
        assert np.array_equal(np.array(written), levels)


def test_denoise_every_page_in_its_own_units(capsys, noisy_png):
    noisy = read_image(noisy_png).pixels[0].numpy().astype(np.float32)
    pages = [Image.fromarray(noisy / 255), Image.fromarray(noisy * 1000)]
    source, out = noisy_png.with_name("in.tif"), noisy_png.with_name("out.tif")
    pages[0].save(source, save_all=True, append_images=pages[1:])
    options = ["--isotropic", "--edges", "periodic", "--max-iterations", "10", "--tolerance", "0"]
    assert main(["denoise", str(source), str(out), "--reference", str(source), *options]) == 0
    output = capsys.readouterr().out
    assert output.startswith("page 1: 10 iterations, stopped before") and "page 2: 10 iterations" in output
    assert output.count("peak signal-to-noise ratio inf dB before") == 2
    first, second = (image.pixels for image in read_images(out))
    white = float(noisy.max() * 1000)
    for pixels, image, unit in ((first, noisy / 255, 1.0), (second, noisy * 1000, white)):
        expected = denoise_tv(
            torch.from_numpy(image)[None] / unit, 0.15, isotropic=True, edges="periodic", max_iterations=10, tolerance=0
        )
        torch.testing.assert_close(pixels / unit, expected, rtol=0, atol=1e-6)


def test_colours_whose_edges_lie_together(noisy_png):
    generator = torch.Generator().manual_seed(0)
    levels = (torch.rand(3, 12, 12, generator=generator) * 255).byte()
    source, out = noisy_png.with_name("colour.png"), noisy_png.with_name("out.png")
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(source)
    assert main(["denoise", str(source), str(out), "--coupling", "channels"]) == 0
    expected = denoise_tv(levels, 0.15, coupling="channels")
    assert torch.equal(read_image(out).pixels, (expected * 255).round().byte())
