"""Build and data to figures: retrieval quality, latency, and what they cost."""
