"""Models by name: settings, papers, and those of users."""
