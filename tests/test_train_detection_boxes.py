"""The parts of the small detector: boxes, proposals, and what is cut out for a box."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ndfast.train.detection import boxes as box_math
from ndfast.train.detection.detector import BoxOutput, Rows, Target
from ndfast.train.detection.proposals import RegionProposals
from ndfast.train.detection.small_detector import SmallDetector, _pool


def some_boxes(count: int, side: float = 60.0) -> Tensor:
    corner = torch.rand(count, 2) * side
    return torch.cat((corner, corner + 2 + torch.rand(count, 2) * 20), dim=1)


def test_overlap_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [5, 5, 5, 5]])
    others = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 4], [4, 0, 8, 4], [5, 5, 5, 5]])
    # 2·2 shared of 16 + 8 - 4
    torch.testing.assert_close(
        box_math.iou(boxes, others), torch.tensor([[1, 0.2, 0, 0], [0, 0, 0, 0]])
    )


def test_offsets_by_hand_and_back(seed: int) -> None:
    anchor, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[4.0, 0, 9, 40]])
    # centres (5, 10) and (6.5, 20), sizes (10, 20) and (5, 40)
    offsets = torch.tensor([[0.15, 0.5, -math.log(2), math.log(2)]])
    torch.testing.assert_close(box_math.encode(box, anchor), offsets)
    anchors, boxes = some_boxes(50), some_boxes(50)
    found = box_math.decode(box_math.encode(boxes, anchors), anchors)
    torch.testing.assert_close(found, boxes, rtol=1e-4, atol=1e-3)
    assert box_math.decode(torch.full((1, 4), 1e4), anchor).isfinite().all()


def test_suppression_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10], [0, 0, 10, 5]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.6])
    # To the best, row 1: row 0 overlaps it by 0.8, row 3 by 0.625.
    assert box_math.nms(boxes, scores, 0.7).tolist() == [1, 2, 3]
    assert box_math.nms(boxes, scores, 0.6).tolist() == [1, 2]
    assert box_math.nms(boxes, scores, 0.9).tolist() == [1, 2, 3, 0]
    assert box_math.nms(boxes[:0], scores[:0], 0.5).tolist() == []


def test_each_box_is_matched_with_the_object_it_overlaps_most() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]])
    objects = torch.tensor([[20.0, 20, 30, 25], [0, 0, 10, 9], [0, 0, 5, 5]])
    nearest, overlap = box_math.match(boxes, objects)
    assert nearest[:2].tolist() == [1, 0]
    torch.testing.assert_close(overlap, torch.tensor([0.9, 0.5, 0.0]))
    assert box_math.match(boxes, objects[:0])[1].tolist() == [0, 0, 0]
    assert box_math.match(boxes[:0], objects)[0].shape == (0,)


@pytest.mark.parametrize(
    ("foreground", "background", "expected"),
    [(50, 50, (4, 12)), (2, 50, (2, 14)), (50, 5, (4, 5)), (0, 50, (0, 16)), (0, 0, (0, 0))],
)
def test_rows_are_chosen_by_their_share(
    foreground: int, background: int, expected: tuple[int, int], seed: int
) -> None:
    kinds = torch.tensor([1] * foreground + [0] * background + [2] * 7)
    kinds = kinds[torch.randperm(len(kinds))]
    draws = [box_math.choose_rows(kinds == 1, kinds == 0, 16, 0.25) for _ in range(2)]
    for rows in draws:
        assert len(rows.unique()) == len(rows)
        found = kinds[rows].tolist()
        assert (found.count(1), found.count(0), found.count(2)) == (*expected, 0)
    if foreground == background == 50:
        assert draws[0].tolist() != draws[1].tolist()


def test_a_box_is_cut_out_in_its_place(seed: int) -> None:
    # Each position holds where its pixels' centre is, so that bilinear samples are exact.
    rows, columns = torch.meshgrid(
        4 * torch.arange(8) + 2.0, 4 * torch.arange(12) + 2.0, indexing="ij"
    )
    maps = torch.stack((columns, rows)).double()
    boxes = torch.tensor([[4.0, 8, 24, 18], [2, 2, 46, 30]], dtype=torch.float64)
    found = _pool(maps, boxes)
    assert found.shape == (2, 2, 5, 5)
    # Bins of 4×2 pixels, the first one's centre at (6, 9).
    torch.testing.assert_close(found[0, 0, 3], torch.tensor([6.0, 10, 14, 18, 22]).double())
    torch.testing.assert_close(found[0, 1, :, 2], torch.tensor([9.0, 11, 13, 15, 17]).double())
    torch.testing.assert_close(found[1, 0, 0], 2 + 44 * torch.arange(0.1, 1, 0.2).double())
    assert _pool(maps, boxes[:0]).shape == (0, 2, 5, 5)


def test_anchors_lie_around_the_middle_of_their_positions() -> None:
    proposals = RegionProposals(channels=2, stride=4, sizes=(8,), most=10)
    anchors = proposals._anchors(torch.zeros(1, 2, 3, 5)).unflatten(0, (3, 5, 3))
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    assert centres[2, 1, 0].tolist() == [6, 10]
    width, height = (anchors[0, 0, :, 2:] - anchors[0, 0, :, :2]).unbind(dim=1)
    torch.testing.assert_close(width * height, torch.full((3,), 64.0))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1.0, 2.0]))


def test_proposals_are_in_the_image_apart_and_bounded(seed: int) -> None:
    proposals = RegionProposals(channels=4, stride=4, sizes=(8, 16), most=20)
    for found in proposals(torch.randn(3, 4, 10, 12), [(40, 48), (33, 21), (40, 48)], None)[0]:
        assert 1 <= len(found) <= 20
        assert not found.requires_grad
        overlaps = box_math.iou(found, found).fill_diagonal_(0)
        assert overlaps.max() <= 0.7
        assert (found >= 0).all()
    boxes, losses = proposals(torch.randn(1, 4, 10, 12), [(33, 21)], None)
    assert (boxes[0][:, 2] <= 21).all()
    assert (boxes[0][:, 3] <= 33).all()
    assert losses == {}


def test_the_losses_of_the_proposals_by_hand(seed: int) -> None:
    proposals = RegionProposals(channels=2, stride=4, sizes=(8,), most=10)
    torch.nn.init.zeros_(proposals.objectness.weight)
    torch.nn.init.zeros_(proposals.offsets.weight)
    torch.nn.init.zeros_(proposals.objectness.bias)
    torch.nn.init.zeros_(proposals.offsets.bias)
    maps = torch.randn(1, 2, 10, 10)
    anchor = proposals._anchors(maps).unflatten(0, (10, 10, 3))[4, 4, 1]
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    # Every probability is a half: log 2 for each of 64 rows.
    for target in (nothing, Target(anchor[None], torch.tensor([1]))):
        _, losses = proposals(maps, [(40, 40)], [target])
        assert losses["objectness"].item() == pytest.approx(math.log(2), rel=1e-5)
        assert losses["proposals"].item() == 0
    # The object is the anchor a pixel to the right: 1/8 of its width, of one row in 64.
    moved = Target(anchor[None] + torch.tensor([1.0, 0, 1, 0]), torch.tensor([1]))
    _, losses = proposals(maps, [(40, 40)], [moved])
    assert losses["proposals"].item() == pytest.approx((1 / 8 - 1 / 18) / 64, rel=1e-4)
    # One that no anchor fits has the anchor that fits it best.
    small = Target(torch.tensor([[20.0, 20, 21, 21]]), torch.tensor([1]))
    _, losses = proposals(maps, [(40, 40)], [small])
    assert losses["proposals"].item() > 0


def detector() -> SmallDetector:
    return SmallDetector(num_classes=3, width=4, dim=8, rows=16, anchor_sizes=(8, 16))


def test_the_losses_of_the_box_head_by_hand() -> None:
    rows = Rows(
        [torch.zeros(3, 4)],
        torch.tensor([3, 0, 3]),
        torch.tensor([[9.0] * 4, [2, 0, 0, -0.5], [9.0] * 4]),
    )
    output = BoxOutput(torch.zeros(3, 8), torch.zeros(3, 4), torch.zeros(3, 4))
    losses = detector().losses(output, rows)
    assert losses["classification"].item() == pytest.approx(math.log(4))
    # Of the one row that is no background: 2 - 1/2 and 0.5²/2, over all three.
    assert losses["regression"].item() == pytest.approx((1.5 + 0.125) / 3)


def test_rows_have_the_label_and_the_offsets_of_their_object(seed: int) -> None:
    found = detector()
    target = Target(some_boxes(3, 40), torch.tensor([2, 0, 1]))
    near = target.boxes.repeat(20, 1)
    sizes = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    proposals = torch.cat((some_boxes(200, 40), near + 0.1 * torch.rand(60, 4) * sizes))
    boxes, labels, offsets = found._sample_image(proposals, target)
    assert len(boxes) == 16
    assert (labels < 3).sum() == 4
    nearest, overlap = box_math.match(boxes, target.boxes)
    assert labels.tolist() == torch.where(overlap >= 0.5, target.labels[nearest], 3).tolist()
    own = labels < 3
    reached = box_math.decode(offsets[own] / torch.tensor([10.0, 10, 5, 5]), boxes[own])
    torch.testing.assert_close(reached, target.boxes[nearest[own]], rtol=1e-4, atol=1e-3)


def test_images_of_different_sizes_make_a_batch(seed: int) -> None:
    found = detector().eval()
    images = [torch.rand(3, 40, 32), torch.rand(3, 21, 50)]
    boxes = [some_boxes(5, 15), some_boxes(2, 15)]
    maps = found.encode(images)
    assert maps.features.shape == (2, 16, 10, 13)
    together = found.read(maps, boxes).features
    # Padding reaches as far as four 3×3 convolutions do: the first boxes' samples lie further in.
    alone = found.read(found.encode(images[:1]), boxes[:1]).features
    assert together.shape == (7, 8)
    inside = (boxes[0][:, 2] < 8).nonzero().flatten()
    torch.testing.assert_close(together[inside], alone[inside], rtol=1e-4, atol=1e-5)


def test_detections_are_clipped_scored_and_apart_by_class() -> None:
    found = detector()
    proposals = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [0, 0, 20, 20], [30, 30, 80, 80]])
    logits = torch.tensor(
        [[5.0, 0, 0, 0], [4, 0, 0, 0], [0, 5, 0, 0], [0, 0, 6, 0]]  # 3 is background
    )
    boxes, labels, scores = found._detect_image(proposals, logits, torch.zeros(4, 4), (64, 64))
    # The second of class 0 overlaps the first; the same box of class 1 does not count.
    assert labels.tolist() == [2, 0, 1]
    assert boxes.tolist() == [[30, 30, 64, 64], [0, 0, 20, 20], [0, 0, 20, 20]]
    torch.testing.assert_close(scores[0], logits[3].softmax(0)[2])
