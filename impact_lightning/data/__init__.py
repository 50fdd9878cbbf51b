"""Images: sources, orders and loaders, and rendered scenes whose factors are known."""
