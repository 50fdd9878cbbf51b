"""Neurons: what single units of a vision transformer respond to, and what the model loses without them."""
