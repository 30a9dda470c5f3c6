"""Figures 5 and 6 and the grid of images: what is drawn is what was given."""

import dataclasses
import itertools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from dearkd.errors import InputError
from dearkd.plan import methods
from dearkd.plan.experiments import load
from dearkd.plan.synthesis import SYNTHESIS
from dearkd.report import diagrams, figures, latent_space, records
from dearkd.report.figures import STYLE

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def style():
    with plt.style.context(STYLE):
        yield
    plt.close("all")


# ---------------------------------------------------------------------------------------------- Figure 6


def table(codes, labels):
    codes = np.asarray(codes, dtype=float)
    frame = pd.DataFrame(codes, columns=[f"f{i}" for i in range(codes.shape[1])])
    frame.insert(0, "label", labels)
    frame.insert(0, "image", [f"image-{i}" for i in range(len(labels))])
    return frame


def clusters(seed, classes=10, each=12, spread=0.1):
    """Normalised codes around a direction per class, the same directions for any seed."""
    directions = np.random.default_rng(0).normal(size=(classes, 32))
    labels = np.repeat(np.arange(classes), each)
    codes = directions[labels] + spread * np.random.default_rng(seed).normal(size=(len(labels), 32))
    return table(codes / np.linalg.norm(codes, axis=1, keepdims=True), labels)


def test_easiest_positives_by_hand():
    codes = np.array([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.1], [3.0, 4.0], [9.0, 9.0]])
    nearest, distance = latent_space.easy_positives(codes, np.array([0, 0, 0, 1, 1, 2]))
    assert nearest.tolist() == [1, 0, 0, 4, 3, -1]
    assert distance[:5] == pytest.approx([1.0, 1.0, 3.0, (9 + 3.9**2) ** 0.5, (9 + 3.9**2) ** 0.5])
    assert np.isnan(distance[5]), "an image alone in its class has none"


def test_easiest_positives_equal_brute_force_and_are_never_the_image_itself():
    frame = clusters(1, classes=4, spread=1.0)
    codes, labels = frame.filter(regex="^f").to_numpy(), frame["label"].to_numpy()
    nearest, distance = latent_space.easy_positives(codes, labels)
    for i, code in enumerate(codes):
        others = [j for j in range(len(codes)) if labels[j] == labels[i] and j != i]
        expected = min(others, key=lambda j: np.linalg.norm(codes[j] - code))
        assert nearest[i] == expected != i and distance[i] == pytest.approx(np.linalg.norm(codes[expected] - code))


def test_two_equal_images_are_each_others_easiest_positive():
    nearest, distance = latent_space.easy_positives(np.zeros((2, 3)), np.zeros(2, dtype=int))
    assert nearest.tolist() == [1, 0] and distance.tolist() == [0.0, 0.0]


def test_the_plane_keeps_classes_apart_across_sets_and_is_the_same_each_time():
    frames = {"real images": clusters(1), "DeepInversion": clusters(2, spread=0.02)}
    embedded = latent_space.embed(frames, range(10))
    again = latent_space.embed(frames, range(10))
    for label in frames:
        pd.testing.assert_frame_equal(embedded[label], again[label])
    centres = embedded["real images"].groupby("label")[["x", "y"]].mean()
    points = embedded["DeepInversion"]
    apart = np.linalg.norm(points[["x", "y"]].to_numpy()[:, None] - centres.to_numpy()[None], axis=2)
    assert (centres.index[apart.argmin(1)] == points["label"]).mean() > 0.9


def test_only_the_classes_asked_for_are_placed_and_rows_are_counted_anew():
    embedded = latent_space.embed({"a": clusters(1), "b": clusters(2)}, [3, 7])["a"]
    assert list(embedded.columns) == ["image", "label", "x", "y", "nearest", "distance"]
    assert sorted(embedded["label"].unique()) == [3, 7] and embedded["image"].iloc[0] == "image-36"
    assert (embedded["label"].to_numpy()[embedded["nearest"]] == embedded["label"]).all()


def test_which_classes_are_shown():
    assert latent_space.shown_classes({"a": clusters(1), "b": clusters(2)}) == list(range(10))
    assert latent_space.shown_classes({"a": clusters(1, classes=11), "b": clusters(2, classes=12)}) == [0, 1, 2, 3]
    some = clusters(1)
    assert latent_space.shown_classes({"a": some, "b": some[some["label"] > 7]}) == [8, 9]
    with pytest.raises(InputError, match="latent codes of a, b: no class is in all of these sets"):
        latent_space.shown_classes({"a": some[some["label"] < 5], "b": some[some["label"] > 7]})


def placed():
    """A set with known places: mean easy-positive distance (0.1 + 0.1 + 0.4 + 0.2 + 0.2) / 5 = 0.2."""
    return pd.DataFrame(
        {
            "image": list("abcdef"),
            "label": [0, 0, 0, 1, 1, 2],
            "x": [0.0, 1.0, 2.0, 8.0, 9.0, 5.0],
            "y": [0.0, 0.5, 1.0, 4.0, 5.0, 9.0],
            "nearest": [1, 0, 1, 4, 3, -1],
            "distance": [0.1, 0.1, 0.4, 0.2, 0.2, np.nan],
        }
    )


def test_a_panel_has_every_point_a_line_to_each_easiest_positive_and_the_mean_distance():
    _, axes = plt.subplots(1, 2)
    latent_space.latent_space(axes, {"ADI": placed(), "DF-DearKD": placed().assign(distance=0.314)}, [0, 1, 2])
    assert axes[0].get_title() == "ADI\n6 images, mean easy-positive distance 0.20"
    assert axes[1].get_title() == "DF-DearKD\n6 images, mean easy-positive distance 0.31"
    assert axes[0].get_xlim() == axes[1].get_xlim() and axes[0].get_ylim() == axes[1].get_ylim()
    drawn = [c.get_offsets().tolist() for c in axes[0].collections if isinstance(c, PathCollection)]
    assert drawn == [[[0, 0], [1, 0.5], [2, 1]], [[8, 4], [9, 5]], [[5, 9]]]
    (lines,) = [c for c in axes[0].collections if isinstance(c, LineCollection)]
    assert np.array(lines.get_segments()).tolist() == [
        [[0, 0], [1, 0.5]],
        [[1, 0.5], [0, 0]],
        [[2, 1], [1, 0.5]],
        [[8, 4], [9, 5]],
        [[9, 5], [8, 4]],
    ]
    assert axes[0].get_legend_handles_labels()[1] == ["0", "1", "2"]


def test_a_region_is_the_class_of_most_images_near_it():
    frames = {"a": clusters(1, classes=3), "b": clusters(2, classes=3)}
    embedded = latent_space.embed(frames, range(3))
    _, axes = plt.subplots(1, 2)
    latent_space.latent_space(axes, embedded, range(3))
    shade = axes[0].images[0]
    left, right, low, high = shade.get_extent()
    pixels = shade.get_array()
    points = embedded["a"]
    columns = ((points["x"] - left) / (right - left) * pixels.shape[1]).astype(int)
    rows = ((points["y"] - low) / (high - low) * pixels.shape[0]).astype(int)
    assert (pixels[rows, columns] == points["label"]).all()


def test_a_class_has_its_number_in_its_own_region_away_from_every_image():
    embedded = latent_space.embed({"real images": clusters(1), "DeepInversion": clusters(2)}, range(10))
    drawn, axes = plt.subplots(1, 2)
    latent_space.latent_space(axes, embedded, range(10))
    points = pd.concat(embedded.values())
    places = [{text.get_text(): text.get_position() for text in ax.texts} for ax in axes]
    plt.close(drawn)
    assert places[0] == places[1] and places[0].keys() == {str(c) for c in range(10)}
    span = np.ptp(points[["x", "y"]].to_numpy(), axis=0)
    for number, place in places[0].items():
        apart = np.linalg.norm((points[["x", "y"]].to_numpy() - np.array(place)) / span, axis=1)
        assert points["label"].iloc[apart.argmin()] == int(number) and apart.min() > 0.03


def test_classes_differ_in_colour_lightness_or_marker():
    assert (
        len(set(latent_space.COLOURS))
        == len(set(latent_space.MARKERS))
        == len(latent_space.COLOURS)
        == len(latent_space.MARKERS)
    )


def test_codes_are_read_back_and_a_broken_table_is_named(tmp_path):
    path = tmp_path / "latents.csv"
    with pytest.raises(InputError, match=r"latents\.csv: no table of latent codes"):
        latent_space.read_codes(path)
    frame = table([[0.5, 0.25], [1.0, 0.0]], [3, 4]).assign(image=["7", "8"])
    frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(latent_space.read_codes(path), frame, check_dtype=False)
    assert latent_space.read_codes(path)["image"].tolist() == ["7", "8"]
    for text in ("", "image,label\na,1\n", "image,label,f0,f1\na,1,0.5\n", "image,label,f0\na,1,x\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"latents\.csv: no table of latent codes"):
            latent_space.read_codes(path)


# ---------------------------------------------------------------------------------------------- images


def sheet(rows, columns, side, channels=(), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows * side, columns * side, *channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_each_tile_stands_in_its_row_and_column_between_white_gaps(channels):
    sheets = {"real images": sheet(10, 8, 12, channels), "ADI": sheet(10, 8, 12, channels, seed=1)}
    _, axes = plt.subplots(1, 2)
    latent_space.image_grid(axes, sheets, 12, range(10))
    for ax, (label, pixels) in zip(axes, sheets.items(), strict=True):
        drawn = np.array(ax.images[0].get_array())
        assert drawn.shape == (10 * 12 + 9, 8 * 12 + 7, 3) and ax.get_title() == label
        for row, column in itertools.product(range(10), range(8)):
            tile = pixels[12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
            shown = drawn[13 * row : 13 * row + 12, 13 * column : 13 * column + 12]
            np.testing.assert_array_equal(shown, np.broadcast_to(tile.reshape(12, 12, -1), (12, 12, 3)))
        assert (drawn[12::13] == 255).all() and (drawn[:, 12::13] == 255).all()
        assert ax.images[0].get_interpolation() == "nearest"


def test_classes_have_the_names_of_the_record_of_their_lists():
    """An older record has none, and its classes keep their numbers."""
    assert records.class_names(load("digits")) == {}
    named = {282: "tiger cat", 665: "moped", 698: "palace", 967: "espresso", 985: "daisy"}
    whole = load("lite0-cpu")
    assert records.class_names(whole) == named
    drawn, _ = figures.image_grid(whole, whole.figures["images"])
    assert [t.get_text() for t in drawn.axes[0].get_yticklabels()] == [*named.values()]
    drawn, _ = figures.image_grid(load("digits"), load("digits").figures["images"])
    assert [t.get_text() for t in drawn.axes[0].get_yticklabels()] == [*"0123456789"]


def test_a_name_in_the_legend_keeps_its_number_and_a_long_one_is_cut():
    codes = [placed(), placed()]
    _, axes = plt.subplots(1, 2)
    latent_space.latent_space(
        axes, {"a": codes[0], "b": codes[1]}, [0, 1, 2], {0: "0", 1: "a very long name of a class"}
    )
    assert axes[0].get_legend_handles_labels()[1] == ["0", "1 a very long name of…", "2"]


def test_classes_are_named_at_the_left_beside_their_row():
    _, axes = plt.subplots(1, 2)
    latent_space.image_grid(axes, {"a": sheet(3, 2, 12), "b": sheet(3, 2, 12)}, 12, ["cat", "dog", "owl"])
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["cat", "dog", "owl"]
    assert axes[0].get_yticks().tolist() == [5.5, 18.5, 31.5]
    assert not any(t.get_visible() and t.get_text() for t in axes[1].get_yticklabels())


def test_large_tiles_shrink_to_their_mean_and_even_noise_stays_below_a_megabyte(tmp_path):
    sheets = {label: sheet(6, 7, 224, (3,), seed) for seed, label in enumerate("abcd")}
    flat = np.full((224, 224, 3), (10, 200, 30), dtype=np.uint8)
    sheets["a"][224:448, 448:672] = flat
    drawn, axes = plt.subplots(2, 2, figsize=(6.6, 5.4))
    latent_space.image_grid(axes.flat, sheets, 224, range(6))
    pixels = np.array(axes[0, 0].images[0].get_array())
    small = int((latent_space.PIXELS / (4 * 42)) ** 0.5)
    pitch = small + 2
    assert pixels.shape == (6 * pitch - 2, 7 * pitch - 2, 3)
    assert (pixels[pitch : pitch + small, 2 * pitch : 2 * pitch + small] == (10, 200, 30)).all()
    assert pixels[:small, :small].mean() == pytest.approx(sheets["a"][:224, :224].mean(), abs=1)
    drawn.savefig(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size < 1_000_000


def test_a_sheet_of_another_shape_is_refused():
    _, ax = plt.subplots()
    with pytest.raises(InputError, match="sample of ADI: 96 x 108 pixels are not 10 rows of tiles of side 12"):
        latent_space.image_grid([ax], {"ADI": sheet(9, 8, 12)}, 12, range(10))
    with pytest.raises(InputError, match="96 x 120 pixels are not 12 rows of tiles of side 10"):
        latent_space.image_grid([ax], {"ADI": sheet(10, 8, 12)}, 10, range(12))


@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_sheet_is_read_as_it_was_written_and_a_broken_one_is_named(tmp_path, channels):
    path, pixels = tmp_path / "sample.png", sheet(2, 3, 12, channels)
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(latent_space.read_sheet(path), pixels)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"sample\.png: cannot be read as an image"):
        latent_space.read_sheet(path)


# ---------------------------------------------------------------------------------------------- Figure 5

SOURCES = [(scale, name) for scale in ("digits", "imagenet", "smoke") for name in SYNTHESIS]


def diagram(source, stages=()):
    drawn, ax = plt.subplots(figsize=(7.2, 5.0))
    diagrams.data_free_pipeline(ax, source, stages)
    drawn.canvas.draw()
    return ax, "\n".join(t.get_text() for t in ax.texts)


def test_every_term_of_a_method_has_its_place():
    assert {term for terms in SYNTHESIS.values() for term in terms} == set(diagrams.TERMS)


@pytest.mark.parametrize("scale, name", SOURCES)
def test_the_diagram_has_this_sources_terms_weights_and_phases_and_no_others(scale, name):
    source = methods.source(load(scale).scale, name)
    _, text = diagram(source)
    terms = dict(source.terms)
    for term, (symbol, _) in diagrams.TERMS.items():
        assert (f"{symbol} × {diagrams._number(terms[term])}" in text) if term in terms else symbol not in text
    for phase in source.recipe.phases:
        assert f"{phase.size} px: {phase.iterations} iterations, lr {phase.lr:g}" in text
    assert source.teacher.model.split(".")[0] in text
    assert ("average pool" in text) == (scale != "digits" and name != "fast")
    assert ("roll ≤ 30 px" in text) == (scale == "imagenet") and ("rotate ≤ 12°" in text) == (scale != "imagenet")
    assert ("DearKD-Ti student" in text) == (name == "adi")


def test_the_papers_numbers():
    whole = load("imagenet")
    run = whole.runs["dearkd-Ti-images~df_dearkd"]
    _, text = diagram(run.stages[0].source, run.stages)
    for part in ("$R_{TV}$ × 1e-4", "$R_{l_2}$ × 1e-5", "$R_{BN}$ × 0.05", "$L_{ep}$ × 50", "$L_{triplet}$ × 0.5"):
        assert part in text
    assert "112 px: 2000 iterations, lr 0.5\n224 px: 2000 iterations, lr 0.01" in text and "640,038 images" in text
    assert "stage I, epochs 0 to 250\nteacher resnet101" in text and "stage II, epochs 250 to 300" in text


def test_a_term_of_weight_0_is_not_drawn():
    source = methods.source(load("digits").scale, "df_dearkd")
    _, text = diagram(dataclasses.replace(source, terms=(*source.terms[:-1], ("triplet", 0.0))))
    assert "L_{triplet}" not in text and "L_{ep}" in text


@pytest.mark.parametrize("scale, name", SOURCES)
def test_no_two_texts_overlap_each_stays_in_its_box_and_arrows_end_at_one(scale, name):
    whole = load(scale)
    run = whole.runs.get(f"dearkd-Ti-images~{name}")
    ax, _ = diagram(methods.source(whole.scale, name), run.stages if run else ())
    texts = [t for t in ax.texts if t.get_text()]
    extents = [t.get_window_extent() for t in texts]
    boxes = [p.get_window_extent() for p in ax.patches if isinstance(p, FancyBboxPatch)]
    for shapes in (extents, boxes):
        assert not any(a.overlaps(b) for a, b in itertools.combinations(shapes, 2))
    for text, extent in zip(texts, extents, strict=True):
        assert all(
            box.containsx(x) and box.containsy(y) for box in boxes if box.overlaps(extent) for x, y in extent.corners()
        ), text
    ends = [ax.transData.transform(t.xy) for t in ax.texts if not t.get_text()]
    for x, y in ends:
        near = [b for b in boxes if b.padded(1).contains(x, y) and not b.padded(-1).contains(x, y)]
        assert len(near) == 1, "an arrow ends at the edge of a box"


def test_the_diagram_copes_with_a_recipe_of_no_augmentation_and_no_images_priors():
    source = methods.source(load("imagenet").scale, "deepinversion")
    recipe = dataclasses.replace(source.recipe, jitter=0, flip=0.0, phases=source.recipe.phases[1:], keep="best")
    terms = (("ce", 1.0), ("r_bn", 0.05))
    _, text = diagram(dataclasses.replace(source, recipe=recipe, terms=terms))
    assert "roll" not in text and "pool" not in text and "lowest loss of\nthe last phase" in text
