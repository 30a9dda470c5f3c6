"""Figures 5 and 6 and the grid of images: what is drawn is what is there."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from dearkd import diagrams, latent, matrix


def frame(codes, labels):
    return pd.DataFrame({"image": [f"i{i}" for i in range(len(labels))], "label": labels}).join(
        pd.DataFrame(codes, columns=[f"f{i}" for i in range(np.shape(codes)[1])])
    )


def clusters(seed, classes=4, each=15, dim=16):
    random = np.random.default_rng(seed)
    centres = 4 * np.eye(dim)[:classes]
    labels = np.repeat(np.arange(classes), each)
    return frame(centres[labels] + 0.3 * random.standard_normal((len(labels), dim)), labels)


def test_the_easiest_positive_is_the_nearest_other_image_of_the_class():
    nearest, distance = latent.easiest_positives(frame([[0.0], [1.0], [3.0], [2.9], [10.0]], [0, 0, 0, 1, 1]))
    assert nearest.tolist() == [1, 0, 1, 4, 3]
    assert distance.tolist() == pytest.approx([1, 1, 2, 7.1, 7.1])


def test_the_plane_is_one_for_all_sets_deterministic_and_keeps_classes_apart():
    frames = {"a": clusters(0), "b": clusters(1)}
    embedded = latent.embed(frames)
    again = latent.embed(frames)
    for name in frames:
        pd.testing.assert_frame_equal(embedded[name], again[name])
    centres = embedded["a"].groupby("label")[["x", "y"]].mean()
    places = embedded["b"][["x", "y"]].to_numpy()
    guess = np.linalg.norm(places[:, None] - centres.to_numpy()[None], axis=2).argmin(1)
    assert (guess == embedded["b"]["label"]).mean() > 0.95


def test_at_most_four_classes_and_only_common_ones_are_shown():
    assert latent.choose({"a": clusters(0, 6), "b": clusters(0, 5)}) == [0, 1, 2, 3]
    only = clusters(0)
    assert latent.choose({"a": clusters(0), "b": only[only["label"] > 1]}) == [2, 3]


def test_panels_carry_their_mean_distance_and_a_line_per_image():
    embedded = latent.embed({"a": clusters(0), "b": clusters(1)})
    figure, axes = plt.subplots(1, 2)
    latent.latent_space(list(axes), embedded)
    mean = latent.easiest_positives(embedded["a"])[1].mean()
    assert axes[0].get_title() == f"a\neasiest positive: {mean:.2f}"
    lines = [c for c in axes[0].collections if isinstance(c, LineCollection)]
    assert len(lines[0].get_segments()) == len(embedded["a"])
    plt.close(figure)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_every_tile_of_the_grid_stands_in_its_place(channels):
    side, classes, columns = 12, 3, 4
    sheet = np.random.default_rng(0).integers(0, 255, (classes * side, columns * side, *channels), dtype=np.uint8)
    figure, ax = plt.subplots()
    latent.image_grid([ax], {"set": sheet}, classes, columns)
    drawn = ax.images[0].get_array()
    assert drawn.shape[:2] == (classes * side + 2, columns * side + 3)
    for row in range(classes):
        for column in range(columns):
            y, x = row * (side + 1), column * (side + 1)
            np.testing.assert_array_equal(
                drawn[y : y + side, x : x + side],
                sheet[row * side : (row + 1) * side, column * side : (column + 1) * side],
            )
    plt.close(figure)


@pytest.mark.parametrize("name", ["deepinversion", "adi", "df_dearkd"])
def test_figure_5_shows_the_methods_own_terms_and_no_text_overlaps(name):
    run = matrix.load("digits").runs[f"dearkd-Ti-images~{name}"]
    figure, ax = plt.subplots(figsize=(7.2, 5.0), dpi=200)
    diagrams.data_free_pipeline(ax, run.stages[0].source, run.stages)
    text = "\n".join(t.get_text() for t in ax.texts)
    assert ("L_{ep}" in text) == ("L_{triplet}" in text) == (name == "df_dearkd")
    assert ("R_{compete}" in text) == (name == "adi")
    assert "$R_{BN}$ × 0.5" in text and "lr 0.2" in text
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.texts if t.get_text()]
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    plt.close(figure)
