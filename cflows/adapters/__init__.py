"""Other libraries' flows and velocity networks, as flows and fields of this package."""
