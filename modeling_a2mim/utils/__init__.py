"""Plotting, files and commands: what every room may use."""
