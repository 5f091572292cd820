"""Maps in closed form."""
