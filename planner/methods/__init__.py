"""Descriptions of the fine-tuning methods for people: what learns, and on which backbones."""
