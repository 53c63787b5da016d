"""Object detection: Faster R-CNN, its data, training and evaluation."""
