"""Descriptions of the fine-tuning methods for users: trained layers and supported backbones."""
