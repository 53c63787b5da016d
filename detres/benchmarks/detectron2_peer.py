"""detectron2's detector, where it is installed, and ours with its weights."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detres.benchmarks.detector import model_config
from detres.benchmarks.peers import FROZEN, TRAIN_ROIS, Peer, images_of
from detres.detection.import_weights import import_detector


def detectron2_c4(short_side: int, rois: int, device: torch.device, batch: int) -> Peer:
    """detectron2's Faster R-CNN R50-C4 as its zoo configures it, but for the number of RoIs."""
    config = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")
    config.MODEL.WEIGHTS = ""
    config.MODEL.DEVICE = str(device)
    config.MODEL.RPN.POST_NMS_TOPK_TEST = rois
    config.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = TRAIN_ROIS
    theirs = build_model(config)
    for name, tensor in theirs.state_dict().items():
        if name.endswith("norm.weight"):
            tensor.fill_(0.5)
    nn.init.normal_(theirs.proposal_generator.rpn_head.objectness_logits.weight, std=0.05)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model_final.pth"
        torch.save({"model": theirs.state_dict()}, file)
        ours = import_detector(file).detector
    ours.backbone.freeze(FROZEN)
    counts = replace(ours.rpn.settings.test_counts, post_nms=rois)
    ours.rpn.settings = replace(ours.rpn.settings, test_counts=counts)
    ours.roi_head.sampler.batch_size = TRAIN_ROIS
    images, targets = images_of(model_config("resnet50", short_side, rois), batch, device)
    given = []
    for pixels, target, (height, width) in zip(images.pixels, targets, images.sizes, strict=True):
        objects = Instances((height, width))
        objects.gt_boxes = Boxes(target.boxes)
        objects.gt_classes = target.labels - 1
        image = pixels.flip(0).float()  # it wants BGR
        given.append({"image": image, "instances": objects, "height": height, "width": width})

    def losses() -> Tensor:
        with EventStorage():  # where it wants to write numbers
            return sum(theirs(given).values())

    height, width = images.sizes[0]
    return Peer(
        "detectron2",
        f"resnet50-C4, stride in the 1x1, {height}x{width} px",
        ours.to(device),
        theirs,
        images,
        targets,
        infer=lambda: theirs.inference(given, do_postprocess=False),
        losses=losses,
    )
