from __future__ import annotations

import numpy as np
import pytest

from detres.images import draw
from detres.images.draw import Mark, class_color, draw_boxes, draw_marks, font_of, text_color


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


RED, GREEN = (255, 0, 0), (0, 255, 0)


def places_of(boxes, *, size=(200, 300), caption=(60, 16), needed=True):
    """Where the captions of boxes stand: x1, y1, x2, y2, None for one that is left out."""
    marks = [Mark(np.array(box), RED, "x", needed=needed) for box in boxes]
    found = draw._places(size, marks, [caption] * len(marks))
    return [None if p is None else (*p, p[0] + caption[0], p[1] + caption[1]) for p in found]


def overlap(one, other):
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return sides.clip(min=0).prod()


def test_captions_stand_above_below_or_inside_by_what_is_free():
    assert places_of([(50, 60, 150, 120)]) == [(50, 44, 110, 60)]  # above, from the left
    assert places_of([(50, 5, 150, 120)]) == [(50, 120, 110, 136)]  # no room above: below
    assert places_of([(50, 5, 150, 195)]) == [(50, 5, 110, 21)]  # nor below: inside
    assert places_of([(280, 60, 299, 120)]) == [(239, 44, 299, 60)]  # ends where the box ends
    assert places_of([(0, 0, 10, 10)], size=(10, 10)) == [(0, 0, 60, 16)]  # larger than the image


def test_captions_of_boxes_in_one_place_do_not_overlap():
    boxes = [(100 + n, 80 + n, 200 + n, 140 + n) for n in range(8)]
    places = [np.array(place) for place in places_of(boxes)]
    pairs = [(a, b) for n, a in enumerate(places) for b in places[:n]]
    assert [overlap(a, b) for a, b in pairs] == [0] * len(pairs)
    assert all((p[:2] >= 0).all() and p[2] <= 300 and p[3] <= 200 for p in places)


def test_where_there_is_no_place_only_what_is_needed_has_a_caption():
    boxes = [(100, 80, 200, 140)] * 20
    assert None not in places_of(boxes)
    left = [place for place in places_of(boxes, needed=False) if place is not None]
    assert 4 <= len(left) < 20
    assert sum(overlap(np.array(a), np.array(b)) for n, a in enumerate(left) for b in left[:n]) == 0


@pytest.mark.parametrize(
    ("line", "least", "most"),
    [("solid", 61, 61), ("dashed", 34, 50), ("dash-dotted", 30, 56), ("dotted", 15, 45)],
)
def test_lines_differ_and_have_a_dark_edge(line, least, most):
    mark = Mark(np.array((20, 30, 80, 70)), RED, "", line)
    drawn = draw_marks(grey(), [mark], letters=12, width=1)
    along = (drawn[30, 20:81] == RED).all(axis=1)
    assert least <= along.sum() <= most
    assert along[0]
    beside = drawn[29, 20:81]
    assert (beside[along] < 60).all()
    assert (drawn[40:60, 30:70] == 128).all()


def test_a_line_has_no_more_gaps_where_it_is_thick_and_a_point_is_drawn():
    for width in (1, 2, 5):
        mark = Mark(np.array((20, 30, 80, 70)), RED, "", "dashed")
        drawn = draw_marks(grey(), [mark], letters=12, width=width)
        assert ((drawn == RED).all(axis=2)).sum() > 60
    point = Mark(np.array((20, 30, 20, 30)), RED, "", "dashed")
    assert draw_marks(grey(), [point], letters=12, width=2).shape == (100, 120, 3)


def test_letters_have_the_size_asked_for_whatever_they_are():
    assert font_of(40).getlength("mm") > 1.9 * font_of(20).getlength("mm")
    images = [
        draw_marks(grey(), [Mark(np.array((5, 40, 90, 90)), GREEN, text)], letters=14, width=1)
        for text in ("caf\u00e9", "cafe", "caf\u0436", "a\nb", "\u7334")
    ]
    assert len({image.tobytes() for image in images}) == len(images)


def test_letters_and_lines_grow_with_the_image():
    small, large = grey(100, 100), grey(2000, 2000)
    heights = []
    for image in (small, large):
        side = image.shape[0]
        box = np.array([[0.2 * side, 0.5 * side, 0.9 * side, 0.9 * side]], np.float32)
        drawn = draw_boxes(image, box, [1], ["cat 0.90"])
        ground = (drawn[: side // 2 - 8] == class_color(1)).all(axis=2).any(axis=1)
        heights.append(ground.sum())
    assert 6 <= heights[0] < heights[1] / 4


def test_text_is_black_on_light_grounds_and_white_on_dark_ones():
    assert [text_color(c) for c in ((255, 255, 0), (250, 250, 250))] == [(0, 0, 0)] * 2
    assert [text_color(c) for c in ((0, 0, 255), (90, 0, 0))] == [(255, 255, 255)] * 2
    # luminance 0.173 and 0.190 by WCAG's weights; both contrasts are the same at 0.179
    assert text_color((80, 96, 255)) == (255, 255, 255)
    assert text_color((100, 100, 255)) == (0, 0, 0)
