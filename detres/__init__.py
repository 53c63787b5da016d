"""Faster R-CNN on residual networks (He et al. 2016, Ren et al. 2015), from annotated photographs
to COCO and VOC numbers.
"""

__version__ = "0.1.0"
