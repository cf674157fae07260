"""Models that are used without fine-tuning: feature extractors, contrastive and language models.

catalogue      the known checkpoints, without torch
build          a checkpoint's model with random weights, on any device
load           published weights from local files
run            one inference on images of zeros, for its prediction
prompted       likelihoods of class names and free answers of a language model
decoder_cache  the decoder of a language model and its cache
four_bit       linear layers in 4 bits
mobilevlm      MobileVLM V2, which no library has
"""
