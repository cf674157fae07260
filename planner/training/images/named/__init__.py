"""Loaders of the named data sets, one module for each origin."""
