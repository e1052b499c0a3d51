"""One warp for everything that moves pixels."""
