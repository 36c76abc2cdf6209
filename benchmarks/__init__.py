"""Measurements: memory counted on any machine, and time side by side with others. Each module is a command, see README."""
