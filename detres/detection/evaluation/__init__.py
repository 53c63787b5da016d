"""Evaluating detections by the protocols of COCO and PASCAL VOC."""
