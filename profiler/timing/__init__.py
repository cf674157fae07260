"""Time of operations: the roofline and the rates that it needs."""
