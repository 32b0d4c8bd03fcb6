"""The OpenAI-compatible doors: the same jobs, models and engine as Azure ML's, in OpenAI's words."""
