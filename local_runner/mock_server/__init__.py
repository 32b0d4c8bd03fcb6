"""The offline twin of Azure ML's hosted fine-tuning. See README.md beside this file."""
