"""Real runs in a process of their own under a memory cap."""
