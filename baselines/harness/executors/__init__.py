"""Where cells run: processes of this machine, jobs of a cluster."""
