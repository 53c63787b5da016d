"""Classification: pretraining backbones, and the paper's tables 2 to 6."""
