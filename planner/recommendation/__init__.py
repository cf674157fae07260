"""The recommendation: request, pipeline, choice, notes, and advice when nothing fits."""
