"""What keeps a released image at a distance from every private one."""
