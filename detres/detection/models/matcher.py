"""Matcher: which ground-truth box each anchor or RoI belongs to (Ren et al. 2015, section
3.1.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from detres.boxes import box_iou

BELOW = -1
BETWEEN = -2


class Matcher:
    """Assigns each candidate box the ground-truth box it overlaps most.

    fg_iou_thresh: IoU from which a candidate is foreground. bg_iou_thresh: IoU below which it is
    background (BELOW); what lies between the two is left out (BETWEEN). bg_iou_floor: background
    needs at least this IoU, below it a candidate is left out too (py-faster-rcnn's BG_THRESH_LO).
    allow_low_quality: every ground-truth box also keeps the candidates that tie for its best IoU,
    so that none goes unlearned.

    Example: fg 0.7, bg 0.3, IoUs of three anchors with their best ground truth .8, .5, .1 -> [0,
    BETWEEN, BELOW].

    Differs from py-faster-rcnn and torchvision in one edge: a ground-truth box that no candidate
    touches (best IoU 0) does not make all the candidates that miss it foreground. Raises ValueError
    for thresholds out of order.
    """

    def __init__(
        self,
        *,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        bg_iou_floor: float = 0.0,
        allow_low_quality: bool = False,
        chunk_elements: int = 1 << 22,
    ) -> None:
        if not 0 <= bg_iou_floor <= bg_iou_thresh <= fg_iou_thresh <= 1:
            raise ValueError(
                f"matcher thresholds need 0 <= {bg_iou_floor} (floor) <= {bg_iou_thresh} (bg) <= "
                f"{fg_iou_thresh} (fg) <= 1"
            )
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh
        self.bg_iou_floor = bg_iou_floor
        self.allow_low_quality = allow_low_quality
        self.chunk_elements = chunk_elements

    def __call__(self, gt_boxes: Tensor, candidates: Tensor) -> Tensor:
        """Return matched_idxs (N,) int64 for candidates (N, 4): row of `gt_boxes` (M, 4), or BELOW,
        or BETWEEN.

        Ties go to the first ground-truth box. No ground truth: all BELOW. The IoU matrix is worked
        off in chunks of ground-truth boxes of at most `chunk_elements` values; the result does not
        depend on the chunk size.
        """
        num = len(candidates)
        best_iou = candidates.new_zeros(num)
        best_idx = torch.zeros(num, dtype=torch.int64, device=candidates.device)
        best_of_a_gt = torch.zeros(num, dtype=torch.bool, device=candidates.device)
        rows = max(1, self.chunk_elements // max(1, num))
        for start in range(0, len(gt_boxes), rows):
            iou = box_iou(gt_boxes[start : start + rows], candidates)  # (rows, N)
            iou_of_chunk, idx_of_chunk = iou.max(dim=0)
            better = iou_of_chunk > best_iou
            best_iou = torch.where(better, iou_of_chunk, best_iou)
            best_idx = torch.where(better, idx_of_chunk + start, best_idx)
            if self.allow_low_quality and num:
                best_of_gt = iou.max(dim=1, keepdim=True).values
                best_of_a_gt |= ((iou == best_of_gt) & (best_of_gt > 0)).any(dim=0)

        foreground = best_iou >= self.fg_iou_thresh
        if self.allow_low_quality:
            foreground |= best_of_a_gt
        background = (best_iou < self.bg_iou_thresh) & (best_iou >= self.bg_iou_floor)
        if len(gt_boxes) == 0:
            # Without objects every candidate is background, whatever the floor: an empty image
            # teaches only that.
            foreground, background = torch.zeros_like(foreground), torch.ones_like(background)
        unmatched = torch.where(background, BELOW, BETWEEN)
        return torch.where(foreground, best_idx, unmatched)
