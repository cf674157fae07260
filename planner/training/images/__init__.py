"""Labelled images for training and evaluation: named data sets and folders."""
