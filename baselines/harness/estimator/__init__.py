"""One model of the user's own: trained, scored, drawn from."""
