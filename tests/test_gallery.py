import base64
import html
import re

import cv2
import nibabel
import numpy as np
import pytest
from conftest import Page
from launching import run_here
from PIL import Image

from medjax.augment.safety import POLICIES
from medjax.commands import gallery
from medjax.errors import InputError
from medjax.reports import pictures

DRAWS = 2
RNG = np.random.default_rng(0)
GREY = (RNG.random((30, 24)) * 200).astype(np.uint8)
COLOUR = cv2.resize((RNG.random((5, 6, 3)) * 255).astype(np.uint8), (24, 30))
BRAIN = np.zeros((12, 14, 6), np.float32)
BRAIN[3:9, 3:11, 1:5] = 50 + 50 * RNG.random((6, 8, 4))
LESION = np.zeros(BRAIN.shape, np.uint8)
LESION[4:7, 8:10, 3] = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(GREY).save(folder / "grey.png")
    Image.fromarray(COLOUR).save(folder / "colour.png")
    for name, voxels in (("brain", BRAIN), ("lesion", LESION)):
        image = nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0]))
        nibabel.save(image, folder / f"{name}.nii.gz")
    return folder


def draw(images, out, *, modality=None, draws=DRAWS, seed=0):
    options = {"modality": modality, "draws": draws, "seed": seed}
    return gallery.gallery(list(map(str, images)), out, **options)


def rows_of(path):
    """{(modality, image): [pictures]} of a page."""
    rows = {}
    for section in path.read_text().split("<section ")[1:]:
        modality = re.match(r'id="(\w+)"', section)[1]
        found = re.findall(
            r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', section
        )
        for code, name in found:
            image = np.frombuffer(base64.b64decode(code), np.uint8)
            image = cv2.imdecode(image, cv2.IMREAD_COLOR)[..., ::-1]
            rows.setdefault((modality, name.rsplit(", ", 1)[0]), []).append(image)
    return rows


@pytest.fixture(scope="module")
def written(folder):
    return draw([folder], folder / "pages" / "all.html")


def test_the_page_is_well_formed_and_asks_for_no_other_file(written):
    read = Page(written.read_text())
    assert read.stack == []
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in read.sources)
    assert not re.search(r"https?://|@import|url\(", written.read_text())


def test_every_policy_has_its_ops_its_ranges_and_its_reasons(written):
    assert list(gallery.MODALITY_TAKES) == list(POLICIES)
    sections = written.read_text().split("<section ")[1:]
    assert len(sections) == len(POLICIES)
    for section, policy in zip(sections, POLICIES.values(), strict=True):
        text = " ".join(html.unescape(re.sub("<[^>]+>", " ", section)).split())
        for op, options in policy.default.items():
            ranges = [f"{name} {value}" for name, value in options.items()]
            assert re.search(op + " " + r"[^,]*, ".join(ranges), text)
        for op, reason in {**policy.caution, **policy.unsafe}.items():
            how = "refused" if op in policy.unsafe else "off, but allowed"
            assert f"{op} {how} {reason}" in text
        reasons = [policy.mirror, policy.upright]
        reasons += [reason for _, reason in policy.limits.values()]
        assert all(reason in text for reason in reasons)


def test_every_image_is_drawn_by_the_policies_that_take_it(written):
    rows = rows_of(written)
    films = ("chest_xray", "mammography", "ultrasound", "fluoroscopy")
    expected = {(m, name) for m in films for name in ("grey.png", "colour.png")}
    brain = f"{written.parents[1].name}/brain.nii.gz"  # Its mask has no row.
    expected |= {(m, brain) for m in ("ct", "brain_mri", "nuclear")}
    expected |= {("retina", "colour.png")}
    assert rows.keys() == expected
    for row in rows.values():
        assert len(row) == 1 + DRAWS
        for one in range(1 + DRAWS):
            for other in range(one):
                change = row[one].astype(float) - row[other]
                assert np.abs(change).mean() > 1


def test_a_row_begins_with_the_image_itself(written):
    rows = rows_of(written)
    grey, colour = rows["chest_xray", "grey.png"], rows["retina", "colour.png"]
    np.testing.assert_array_equal(grey[0][..., 0], GREY)
    np.testing.assert_array_equal(colour[0], COLOUR)
    luminance = COLOUR @ [0.299, 0.587, 0.114]
    shown = rows["chest_xray", "colour.png"][0][..., 0]
    assert np.abs(shown - luminance).max() <= 0.51


def test_two_images_have_draws_of_their_own(folder, tmp_path):
    Image.fromarray(GREY).save(tmp_path / "twin.png")
    images = [folder / "grey.png", tmp_path / "twin.png"]
    path = draw(images, tmp_path / "a.html", modality="chest_xray", draws=1)
    one, other = rows_of(path).values()
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[1].astype(float) - other[1]).mean() > 1
    same = draw(images, tmp_path / "b.html", modality="chest_xray", draws=1)
    assert same.read_text() == path.read_text()
    new = draw(images, tmp_path / "c.html", modality="chest_xray", draws=1, seed=1)
    assert not np.array_equal(rows_of(new)["chest_xray", "grey.png"][1], one[1])


def test_a_volume_is_shown_head_up_in_its_true_proportions_with_its_mask(written):
    name = f"{written.parents[1].name}/brain.nii.gz"
    picture = rows_of(written)["brain_mri", name][0]
    scale = gallery.WIDTH / 14  # The longest side: 14 voxels of 1 mm, as 6 of 2 are 12.
    heights = [round(n * scale) for n in (14, 12, 12)]
    assert picture.shape[:2] == (
        sum(heights) + 2 * gallery.PLANE_GAP,
        gallery.WIDTH,
    )
    axial = picture[: heights[0]]
    edge = np.argwhere((axial == pictures.TRUE).all(-1))
    y, x = edge.mean(0) / scale
    # The file's axes are RAS: x = 4 to 6 of 12 is left of the middle of the body's
    # right side, so right in the picture, and y = 8 to 9 of 14 is in front.
    margin = (14 - 12) / 2
    np.testing.assert_allclose((y, x), (14 - 9.0, margin + 12 - 5.5), atol=0.3)
    coronal = picture[heights[0] + gallery.PLANE_GAP :][: heights[1]]
    y, _ = np.argwhere((coronal == pictures.TRUE).all(-1)).mean(0) / scale
    np.testing.assert_allclose(y, 12 - 2 * 3.5, atol=0.3)  # z = 3 of 6, head up.


def test_a_large_folder_is_sampled_and_that_is_said(tmp_path):
    for n in range(20):
        Image.fromarray(GREY).save(tmp_path / f"{n:02}.png")
    path = draw([tmp_path], tmp_path / "a.html", modality="ultrasound", draws=1)
    assert len(rows_of(path)) == gallery.MAX_IMAGES
    assert "6 of the 20 images in" in Page(path.read_text()).text


def test_what_does_not_fit_is_refused_by_name(folder, tmp_path):
    out = tmp_path / "a.html"
    with pytest.raises(InputError, match=r"modality='xray' is unknown: .*'chest_xray'"):
        draw([folder], out, modality="xray")
    with pytest.raises(InputError, match=r"--modality=retina: .*in colour"):
        draw([folder / "grey.png"], out, modality="retina")
    with pytest.raises(InputError, match=r"--modality=ct: .*NIfTI volumes"):
        draw([folder / "grey.png"], out, modality="ct")
    with pytest.raises(InputError, match=r"lesion.nii.gz: is a mask"):
        draw([folder / "lesion.nii.gz"], out)
    both = [folder / "lesion.nii.gz", folder / "grey.png"]
    path = draw(both, tmp_path / "b.html", modality="chest_xray", draws=1)
    assert "lesion.nii.gz is a mask (two values) without" in Page(path.read_text()).text
    with pytest.raises(InputError, match=r"--draws=0"):
        draw([folder], out, draws=0)
    assert not out.exists()


def test_the_command_writes_a_page_or_one_line(folder, tmp_path):
    out = tmp_path / "a.html"
    arguments = ["gallery", f"--images={folder / 'grey.png'}", f"--out={out}"]
    said, _ = run_here(*arguments, "--modality=chest_xray", "--draws=1")
    assert f"gallery: {out}" in said and len(rows_of(out)) == 1
    bad = tmp_path / "bad.png"
    bad.write_bytes((folder / "grey.png").read_bytes()[:-20])
    _, said = run_here(*arguments, f"--images={bad}", code=2)
    (line,) = [line for line in said.splitlines() if line]
    assert line.startswith(f"error: {bad}: is truncated")
