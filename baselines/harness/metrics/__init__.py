"""What is measured of a flow."""
