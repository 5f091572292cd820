"""Base distributions beside the normal one."""
