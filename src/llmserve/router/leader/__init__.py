"""Which router leads, and for how long."""
