"""What peft's methods need: their configs, their starts, their virtual tokens, and whether a file fits."""
