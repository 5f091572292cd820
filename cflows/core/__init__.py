"""What every flow is made of: bijectors, bases, the flow itself, and its file."""
