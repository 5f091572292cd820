"""The discrete flows."""
