"""Many runs from one config, and the page that compares them."""
