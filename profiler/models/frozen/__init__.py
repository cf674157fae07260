"""Models that are used without fine-tuning: feature extractors, contrastive and language models.

catalogue   the known checkpoints, without torch
build       a checkpoint's model with random weights, on any device
run         one inference: what is computed for a batch of images
mobilevlm   MobileVLM V2, which no library has
"""
