from __future__ import annotations

import numpy as np

from detres.images.draw import class_color, contact_sheet, draw_boxes


def grey(height=100, width=120):
    return np.full((height, width, 3), 128, np.uint8)


def test_a_box_is_drawn_in_its_colour_and_the_image_stays():
    image = grey()
    drawn = draw_boxes(image, np.array([[20, 30, 60, 80]], np.float32), [2], [""])
    assert (image == 128).all()
    for y, x in ((30, 40), (80, 40), (55, 20), (55, 60)):
        assert tuple(drawn[y, x]) == class_color(2)
    assert (drawn[40:70, 30:50] == 128).all()
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)


def test_the_best_stays_on_top():
    boxes = np.array([[20, 30, 60, 80], [20, 30, 60, 80]], np.float32)
    assert tuple(draw_boxes(grey(), boxes, [1, 2], ["", ""])[30, 40]) == class_color(1)


def test_a_caption_changes_pixels_above_its_box():
    boxes = np.array([[20, 40, 60, 80]], np.float32)
    with_text, without = (draw_boxes(grey(), boxes, [1], [caption]) for caption in ("cat 0.90", ""))
    assert (with_text[:39] != without[:39]).any()


def test_boxes_beyond_the_image_and_none_at_all():
    boxes = np.array([[-50, -50, 500, 500], [110, 95, 400, 400]], np.float32)
    assert draw_boxes(grey(), boxes, [1, 2], ["a very long name 0.99", "b"]).shape == (100, 120, 3)
    assert (draw_boxes(grey(), np.zeros((0, 4), np.float32), [], []) == 128).all()


def test_neighbouring_labels_have_distant_colours():
    for label in range(1, 30):
        assert np.abs(np.subtract(class_color(label), class_color(label + 1))).max() > 60


def test_a_sheet_lays_images_out_in_rows():
    images = [np.full((40, 80, 3), value, np.uint8) for value in (50, 100, 150)]
    sheet = contact_sheet(images, columns=2, cell=60)
    assert sheet.shape == (120, 120, 3)
    assert [sheet[y, x, 0] for y, x in ((10, 10), (10, 70), (70, 10), (70, 70))] == [
        50,
        100,
        150,
        0,
    ]
    assert (sheet[30:60, :60] == 0).all()  # half as high as wide: black below
    assert contact_sheet([], columns=2, cell=60).shape == (0, 120, 3)
