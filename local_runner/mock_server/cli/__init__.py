"""`maas mock …`."""
