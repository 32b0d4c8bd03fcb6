"""The storage account: its door, its signatures, and its contents on the disk."""
