"""Classification without fine-tuning, beside the tuned plans.

options     the known frozen models: do they fit, and what is published of them
features    k-NN and a linear probe on the features of a frozen backbone
"""
