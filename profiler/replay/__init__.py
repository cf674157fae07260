"""One training step on fake tensors, with the birth and death of every storage recorded."""
