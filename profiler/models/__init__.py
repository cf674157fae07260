"""From a workload to a model that can be trained: backbones, methods, and the builder."""
