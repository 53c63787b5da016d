"""Evaluation protocols: COCO, PASCAL VOC."""
