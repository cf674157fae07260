"""Classification without fine-tuning, beside the tuned plans.

options        the known frozen models: memory, time, energy and published accuracies
option_cost    cost of an image and of a linear probe
features       k-NN and a linear probe on the features of a frozen backbone
class_prompts  class names, prompts, and the class that a free answer names
zero_shot      evaluation of contrastive and prompted models
plan_file      plan files without fine-tuning
probe_folder   a fitted linear probe on disk
"""
