"""Quantization: float rows to the block formats that both containers hold."""
