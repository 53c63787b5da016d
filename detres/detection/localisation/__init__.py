"""ImageNet localisation: where the object of a known or predicted class is (paper, appendix C)."""
