"""The service's doors: plain functions from a call to a reply."""
